"""Benchmarks and estimates, and the tables that they write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ..common.csv_files import to_csv


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns as the text of a CSV file."""
    columns = list(rows[0]) if rows else []
    return to_csv(columns, ([row[name] for name in columns] for row in rows))


def partial_of(out: Path) -> Path:
    """Where rows are written as they come, until all are there and in ``out``."""
    return out.with_name(f"{out.stem}-partial.csv")


def profile_of(out: Path) -> Path:
    """Where the profile of what is in ``out`` is written."""
    return out.with_name(f"{out.stem}-profile.csv")


def as_text(rows: Sequence[Mapping[str, str]], right: Collection[str] = ()) -> str:
    """Rows of the same columns for a terminal; the columns of ``right`` are flush right."""
    head = {key: key for key in (rows[0] if rows else [])}
    widths = {key: max(len(row[key]) for row in [head, *rows]) for key in head}
    aligned = {key: f"{'>' if key in right else '<'}{width}" for key, width in widths.items()}
    lines = ("  ".join(f"{row[key]:{how}}" for key, how in aligned.items()) for row in [head, *rows])
    return "\n".join(line.rstrip() for line in lines)
