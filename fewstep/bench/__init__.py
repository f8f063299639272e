"""Benchmarks and estimates, and the tables that they write."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns as the text of a CSV file."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_text(rows: Sequence[Mapping[str, str]], right: Collection[str] = ()) -> str:
    """Rows of the same columns for a terminal; the columns of ``right`` are flush right."""
    head = {key: key for key in (rows[0] if rows else [])}
    widths = {key: max(len(row[key]) for row in [head, *rows]) for key in head}
    aligned = {key: f"{'>' if key in right else '<'}{width}" for key, width in widths.items()}
    lines = ("  ".join(f"{row[key]:{how}}" for key, how in aligned.items()) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)
