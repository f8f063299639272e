"""Fill a table with measured numbers beside the reported ones, as CSV and Markdown."""

from __future__ import annotations

import sys

from .common.cli import metrics_parser, run
from .common.files import write_text
from .common.provenance import is_stale
from .config import read_spec
from .config.specs import TableSpec
from .reporting.markdown import table_markdown, warning_texts
from .reporting.metrics import load_metrics
from .reporting.rows import fill_table


def main(argv: list[str] | None = None) -> None:
    """Read spec and metrics, write CSV (``--out``) and Markdown."""
    options = metrics_parser(__doc__).parse_args(argv)
    spec = read_spec(TableSpec, options.spec)
    metrics = load_metrics(options.metrics)
    asked = {key for row in spec.rows for columns in row.cells.values() for keys in columns for key in keys}
    for key in metrics.keys() - asked:
        print(f"note: {spec.name} does not ask for {key}; left out", file=sys.stderr)
    table = fill_table(spec, metrics, is_stale)
    for text in warning_texts(table):
        print(f"warning: {spec.name}: {text}", file=sys.stderr)
    if options.markdown:
        write_text(options.markdown, table_markdown(spec, table))
    write_text(options.out, table.to_csv())


if __name__ == "__main__":
    run(main)
