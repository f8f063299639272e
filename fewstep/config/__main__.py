"""Write the JSON schemas by which editors complete and check config/: python -m fewstep.config FOLDER."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from ..common.cli import plain_parser
from ..common.files import write_text
from .load import AssetsFile, ClaimsFile, MethodsFile, Parts, Root
from .rates import Costs
from .tables import Table

MODELS: dict[str, type[BaseModel]] = {
    "config": Root,
    "assets": AssetsFile,
    "settings": Parts,
    "methods": MethodsFile,
    "table": Table,
    "claims": ClaimsFile,
    "costs": Costs,
}


def rendered() -> dict[str, str]:
    """File name -> text of every schema."""
    return {
        f"{stem}.json": json.dumps(model.model_json_schema(), indent=1) + "\n"
        for stem, model in MODELS.items()
    }


def main(argv: list[str] | None = None) -> None:
    """Write every schema into the folder given."""
    arguments = plain_parser(__doc__)
    arguments.add_argument("folder", type=Path, help="where to write: workflow/schemas")
    folder = arguments.parse_args(argv).folder
    for name, text in rendered().items():
        write_text(folder / name, text)


if __name__ == "__main__":
    main()
