"""Draw a figure as PNG with its data as CSV: a metric against steps or a parameter, curves, samples."""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .common.files import atomic, write_text
from .common.provenance import is_stale
from .config import read_spec
from .config.specs import TableSpec
from .results import load_metrics, table_lines, to_csv


def main(argv: list[str] | None = None) -> None:
    """Write the picture (``--out``) and its numbers (``--csv``).

    Raises:
        ValueError: the inputs do not fit the kind of figure.
    """
    arguments = parser(__doc__)
    arguments.add_argument(
        "--metrics", type=Path, nargs="*", default=[], help="kinds curve, sweep: metrics files"
    )
    arguments.add_argument(
        "--curves", type=Path, nargs="*", default=[], help="kind training: train.jsonl files"
    )
    arguments.add_argument(
        "--images", type=Path, nargs="*", default=[], help="kinds grid, scatter: tars of samples"
    )
    arguments.add_argument("--reference", type=Path, nargs="?", help="kind scatter: npz with the real points")
    arguments.add_argument("--csv", type=Path, required=True, help="the numbers behind the picture")
    options = arguments.parse_args(argv)
    spec = read_spec(TableSpec, options.spec)
    kind = spec.table.kind
    # matplotlib takes a second to import, so the drawing code comes in only when its turn has come.
    if kind == "curve":
        from .figures import curves

        lines = table_lines(spec, load_metrics(options.metrics), is_stale)
        with atomic(options.out) as picture:
            curves.draw(spec, lines, picture)
    elif kind == "sweep":
        from .figures import sweep

        lines = sweep.read(spec, load_metrics(options.metrics), is_stale)
        with atomic(options.out) as picture:
            sweep.draw(spec, lines, picture)
    elif kind == "scatter":
        from .figures import scatter

        if options.reference is None:
            raise ValueError(f"{options.spec}: kind scatter needs --reference, the real points")
        lines, points = scatter.read(spec, options.images, options.reference)
        with atomic(options.out) as picture:
            scatter.draw(spec, points, picture)
    elif kind in ("ranking", "price"):
        from .figures import ranking

        lines = table_lines(spec, load_metrics(options.metrics), is_stale)
        with atomic(options.out) as picture:
            (ranking.draw if kind == "ranking" else ranking.draw_price)(spec, lines, picture)
    elif kind == "training":
        from .figures import training

        lines = training.read(spec, options.curves)
        with atomic(options.out) as picture:
            training.draw(spec, lines, picture)
    elif kind == "grid":
        from .figures import grid

        if len(options.images) != 1:
            raise ValueError(f"{options.spec}: kind grid takes one --images file, not {len(options.images)}")
        lines, picture_of = grid.select(options.images[0], spec.table.columns, spec.table.classes)
        with atomic(options.out) as picture:
            grid.draw(picture_of, picture)
    else:
        raise ValueError(f"{options.spec}: kind {kind!r} is not a figure; use fewstep.table")
    write_text(options.csv, to_csv(lines))


if __name__ == "__main__":
    run(main)
