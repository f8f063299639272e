"""CSV files, whose texts no spreadsheet takes for formulas, and which show damage if they are sealed."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import reading

DIGEST = "digest"
"""Last column of a sealed file, the same in every row: 16 hex digits of the SHA-256 of all other cells."""
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[str]], sealed: bool = False) -> str:
    """Rows as the text of a CSV file.

    A text that a spreadsheet would take for a formula (it begins with =, +, -, @ or white space) gets an
    apostrophe before it, as in a spreadsheet; numbers do not.
    """
    head, *body = ([_quoted(cell) for cell in row] for row in [columns, *rows])
    if not sealed:
        return _text([head, *body])
    digest = _digest([head, *body])
    return _text([[*head, DIGEST], *([*row, digest] for row in body)])


def read_csv(path: str | Path, sealed: bool = False) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a file that `to_csv` wrote.

    Raises:
        ValueError: the file is damaged: cells are missing, or they are not those of its digest.
    """
    with reading(path, "a CSV file as it was made, make it again"):
        with Path(path).open(encoding="utf-8", newline="") as stream:
            columns, *rows = csv.reader(stream, strict=True)
        if any(len(row) != len(columns) for row in rows):
            raise ValueError("a row has more or fewer cells than there are columns")
        if sealed:
            told = {row[-1] for row in rows}
            columns, *rows = (row[:-1] for row in [columns, *rows])
            if told != {_digest([columns, *rows])}:
                raise ValueError(f"its cells are not those of its column {DIGEST}")
    columns = [_unquoted(cell) for cell in columns]
    return columns, [dict(zip(columns, map(_unquoted, row), strict=True)) for row in rows]


def _quoted(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) and not _is_number(cell) else cell


def _unquoted(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _digest(rows: Sequence[Sequence[str]]) -> str:
    return hashlib.sha256(_text(rows).encode()).hexdigest()[:16]


def _text(rows: Iterable[Sequence[str]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()
