"""Write the JSON schemas by which editors complete and check config/: python -m fewstep.config FOLDER."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..common.files import write_text
from .load import schemas


def rendered() -> dict[str, str]:
    """File name -> text of every schema."""
    return {f"{name}.json": json.dumps(schema, indent=1) + "\n" for name, schema in schemas().items()}


def main(argv: list[str] | None = None) -> None:
    """Write every schema into the folder given."""
    arguments = argparse.ArgumentParser(prog="python -m fewstep.config", description=__doc__)
    arguments.add_argument("folder", type=Path, help="where to write: workflow/schemas")
    folder = arguments.parse_args(argv).folder
    for name, text in rendered().items():
        write_text(folder / name, text)


if __name__ == "__main__":
    main()
