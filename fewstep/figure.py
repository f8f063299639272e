"""Draw a figure as PNG with its data as CSV: a metric against steps or a parameter, curves, samples."""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import TableSpec
from .reporting.figures import draw_figure


def main(argv: list[str] | None = None) -> None:
    """Write the picture (``--out``) and its numbers (``--csv``); errors as for :func:`draw_figure`."""
    arguments = parser(__doc__)
    for name, meaning in (
        ("metrics", "kinds curve, ranking, price, sweep: metrics files"),
        ("curves", "kind training: train.jsonl files"),
        ("images", "kinds grid, samples, scatter: tars of samples"),
    ):
        arguments.add_argument(f"--{name}", type=Path, nargs="*", default=[], help=meaning)
    arguments.add_argument("--reference", type=Path, nargs="?", help="kind scatter: npz with the real points")
    arguments.add_argument("--real", type=Path, nargs="?", help="kind samples: tar of real images")
    arguments.add_argument("--csv", type=Path, required=True, help="the numbers behind the picture")
    given = arguments.parse_args(argv)
    draw_figure(
        read_spec(TableSpec, given.spec),
        given.out,
        given.csv,
        metrics=given.metrics,
        logs=given.curves,
        images=given.images,
        reference=given.reference,
        real=given.real,
    )


if __name__ == "__main__":
    run(main)
