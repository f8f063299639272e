"""A logged quantity against the training step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ...common.files import read_lines
from ...config.specs import TableSpec
from ..formatting import rounded, to_csv
from ..metrics import metric_name
from . import style

COLUMNS = ("row", "label", "seed", "step", "update")
"""Of the CSV file, before the logged quantity: id and label of the table's row, and where in its training."""


def read(spec: TableSpec, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A line of the CSV file for every logged update, one train.jsonl file after the other.

    Raises:
        ValueError: the number of files is not that of the runs, or a file lacks the column.
    """
    labels = {row.id: row.label for row in spec.table.rows}
    runs = [(row, seed) for row, run in spec.ordered_runs for seed in run.seeds]
    if len(runs) != len(paths):
        raise ValueError(
            f"{spec.name}: {len(paths)} --curves for {len(runs)} runs {runs}; give one for each, in order"
        )
    column = spec.table.metric
    lines: list[dict[str, Any]] = []
    for (row, seed), path in zip(runs, paths, strict=True):
        before = len(lines)
        for entry in read_entries(path):
            if column in entry:
                values = (row, labels[row], seed, entry["step"], entry["update"])
                lines.append(dict(zip(COLUMNS, values, strict=True)) | {column: rounded(entry[column])})
        if len(lines) == before:
            raise ValueError(f"{path}: no line has the column {column!r}")
    return lines


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a train.jsonl; a damaged one is a ValueError that names it."""
    for position, text in enumerate(read_lines(path), start=1):
        try:
            yield json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {position}: {error}") from None


def draw(spec: TableSpec, paths: Sequence[Path]) -> tuple[Figure, str]:
    """First update of every step faintly, a running median on top; values not finite leave a gap.

    Errors as for :func:`read`.
    """
    lines = read(spec, paths)
    column = spec.table.metric
    colours: dict[str, str] = {}
    figure, (axis,) = style.panels(1, width=7.2)
    for row, seed in dict.fromkeys((line["row"], line["seed"]) for line in lines):
        first = [line for line in lines if (line["row"], line["seed"], line["update"]) == (row, seed, 0)]
        x = [line["step"] for line in first]
        y = [math.nan if line[column] is None else line[column] for line in first]
        label = None if row in colours else first[0]["label"]
        colour = colours.setdefault(row, style.look(len(colours))["color"])
        axis.plot(x, y, color=colour, alpha=0.28, lw=0.8)
        axis.plot(x, running_median(y), color=colour, lw=2, label=label)
    axis.set(yscale="log", xlabel="Training step", ylabel=metric_name(column, spec.scale))
    axis.margins(x=0.01)
    axis.legend(loc="upper right")
    style.plain_numbers(axis)
    figure.tight_layout()
    return figure, to_csv([*COLUMNS, column], lines)


def running_median(values: Sequence[float]) -> list[float]:
    """Median over a centred window of a fortieth of the curve; NaN where the window holds no finite value."""
    half = max(1, len(values) // 80)
    result = []
    for index in range(len(values)):
        window = [v for v in values[max(0, index - half) : index + half + 1] if math.isfinite(v)]
        result.append(median(window) if window else math.nan)
    return result
