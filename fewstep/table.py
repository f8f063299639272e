"""Fill a table with measured numbers beside the reported ones, as CSV and Markdown."""

from __future__ import annotations

import sys
from pathlib import Path

from .common.cli import metrics_parser, run
from .common.files import write_text
from .common.provenance import bounds_digest, is_stale
from .config import ConfigError, read_spec
from .config.specs import TableSpec
from .reporting.bounds import bounds_table
from .reporting.markdown import table_markdown, warning_texts
from .reporting.metrics import load_metrics
from .reporting.rows import fill_table


def main(argv: list[str] | None = None) -> None:
    """Read spec and metrics, write CSV (``--out``) and Markdown."""
    arguments = metrics_parser(__doc__)
    arguments.add_argument("--bounds", type=Path, nargs="?", help="scores of real scenes, if it shows them")
    options = arguments.parse_args(argv)
    spec = read_spec(TableSpec, options.spec)
    metrics = load_metrics(options.metrics)
    asked = {key for row in spec.rows for columns in row.cells.values() for keys in columns for key in keys}
    for key in metrics.keys() - asked:
        print(f"note: {spec.name} does not ask for {key}; left out", file=sys.stderr)
    if spec.table.bounds is None:
        table = fill_table(spec, metrics, is_stale)
    elif options.bounds is None:
        raise ConfigError(f"{options.spec}: table.bounds: needs a file; pass --bounds")
    else:
        table = bounds_table(spec, options.bounds, bounds_digest())
    for text in warning_texts(table):
        print(f"warning: {spec.name}: {text}", file=sys.stderr)
    if options.markdown:
        write_text(options.markdown, table_markdown(spec, table))
    write_text(options.out, table.to_csv())


if __name__ == "__main__":
    run(main)
