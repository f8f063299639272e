"""Numbers as text, for readers and in CSV files, and rows of CSV files read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from ..common import csv_files
from ..config.tables import DECIMALS

SMALL = 0.1
"""Below it two decimals say too little of a number (MMD²)."""
SEPARATOR = "; "
"""Between the values of a list in a CSV file."""

_EMPTY_IS_NONE = BeforeValidator(lambda text: None if text == "" else text)
_SPLIT = BeforeValidator(lambda text: text.split(SEPARATOR))
Number = Annotated[float | None, _EMPTY_IS_NONE]
"""A number of a CSV file, or None for an empty text."""
WholeNumber = Annotated[int | None, _EMPTY_IS_NONE]
TextList = Annotated[list[str], _SPLIT]
NumberList = Annotated[list[Number], _SPLIT]

Model = TypeVar("Model")


def format_number(
    value: float | None,
    metric: str = "",
    *,
    signed: bool = False,
    significant: int | None = None,
    exact: bool = False,
) -> str:
    """A number for readers; empty for None.

    As many decimals as the metric has in DECIMALS. For others two, one from 1000 on; or ``significant``
    digits, zeros at the end among them. An ``exact`` number, which is not measured, is as short as it can be.
    """
    if value is None:
        return ""
    if exact:
        text = f"{value:.6g}"
    elif metric in DECIMALS:
        text = f"{value:{'+' if signed else ''}.{DECIMALS[metric]}f}"
    elif significant is not None:
        text = f"{value:#.{significant}g}".rstrip(".")
        text = f"{value:.0f}" if "e+" in text else text
    else:
        text = f"{value:{'+' if signed else ''}.{2 if abs(value) < 1000 else 1}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def format_mean(mean: float | None, std: float | None, metric: str = "") -> str:
    """Mean, with ± the standard deviation if there is one; three significant digits for small means."""
    significant = 3 if mean and abs(mean) < SMALL else None
    text = format_number(mean, metric, significant=significant)
    return text if std is None else f"{text} ± {format_number(std, metric, significant=significant)}"


def rounded(value: float | None) -> float | None:
    """A number as a CSV file holds it, to six significant digits.

    Rows hold such numbers, so that what is made of them and what is made of their CSV file is the same.
    """
    return None if value is None else float(f"{value:.6g}")


def csv_text(value: object) -> str:
    """A value of a CSV file: numbers to six significant digits, None empty, lists with semicolons."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return SEPARATOR.join(map(csv_text, value)) if isinstance(value, list) else str(value)


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]], sealed: bool = False) -> str:
    """Rows as the text of a CSV file; see `common.csv_files`."""
    return csv_files.to_csv(columns, ([csv_text(row[column]) for column in columns] for row in rows), sealed)


def parse_rows(model: type[Model], rows: Sequence[Mapping[str, Any]], path: str | Path) -> list[Model]:
    """Rows of a CSV file as objects of a dataclass, numbers as numbers.

    Raises:
        ValueError: a column is missing, or a value is not of its type.
    """
    try:
        return TypeAdapter(list[model]).validate_python(rows)  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        position, column = first["loc"][:2]
        raise ValueError(f"{path}: row {position}, {column}: {first['msg']}; make the file again") from None
