"""Draw a figure as PNG with its data as CSV: a metric against steps or a parameter, curves, samples."""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import TableSpec
from .reporting.figures.inputs import FigureInputs
from .reporting.figures.kinds import draw_figure


def main(argv: list[str] | None = None) -> None:
    """Write the picture (``--out``) and its numbers (``--csv``); errors as for :func:`draw_figure`."""
    arguments = parser(__doc__)
    arguments.add_argument(
        "--metrics",
        type=Path,
        nargs="*",
        default=[],
        help="kinds curve, ranking, price, sweep: metrics files",
    )
    arguments.add_argument(
        "--curves", type=Path, nargs="*", default=[], help="kind training: train.jsonl files"
    )
    arguments.add_argument(
        "--images", type=Path, nargs="*", default=[], help="kinds grid, scatter: tars of samples"
    )
    arguments.add_argument("--reference", type=Path, nargs="?", help="kind scatter: npz with the real points")
    arguments.add_argument("--csv", type=Path, required=True, help="the numbers behind the picture")
    given = arguments.parse_args(argv)
    inputs = FigureInputs(given.metrics, given.curves, given.images, given.reference)
    draw_figure(read_spec(TableSpec, given.spec), inputs, given.out, given.csv)


if __name__ == "__main__":
    run(main)
