"""Gather tables, figures and claims into one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import ReportSpec
from .methods import deviations
from .reporting.page import render_page


def main(argv: list[str] | None = None) -> None:
    """Read the spec and the parts, write the page.

    Raises:
        ValueError: two parts have the same file name.
    """
    arguments = parser(__doc__)
    arguments.add_argument(
        "--parts",
        type=Path,
        nargs="*",
        default=[],
        help="CSV files of tables, PNG files of figures, claims.csv",
    )
    arguments.add_argument(
        "--curves", type=Path, nargs="*", default=[], help="train.jsonl files of the trainings in the spec"
    )
    given = arguments.parse_args(argv)
    parts = {path.name: path for path in given.parts}
    if len(parts) != len(given.parts):
        raise ValueError("--parts: two files have the same name; give each table and figure once")
    spec = read_spec(ReportSpec, given.spec)
    write_text(given.out, render_page(spec, parts, deviations, given.out.parent, given.curves))


if __name__ == "__main__":
    run(main)
