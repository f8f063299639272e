"""Write the JSON schemas that editors use: python -m fewstep.config workflow/schemas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..common.files import write_text
from .load import schemas


def rendered() -> dict[str, str]:
    """File name -> text of every schema."""
    return {f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas().items()}


if __name__ == "__main__":
    for name, text in rendered().items():
        write_text(Path(sys.argv[1]) / name, text)
