"""A logged quantity against the training step."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.pyplot import rc_context

from ...config.specs import TableSpec
from ..formatting import rounded, to_csv
from ..metrics import metric_name
from . import style
from .inputs import FigureInputs


@dataclass(frozen=True)
class LoggedUpdate:
    """The logged quantity of one optimizer update."""

    row: str
    """id of the table's row."""
    label: str
    seed: int
    step: int
    update: int
    """Number of the update within its step."""
    value: float | None
    """None where the log has null."""


def read(spec: TableSpec, paths: Sequence[Path]) -> list[LoggedUpdate]:
    """The logged column of every train.jsonl file, one file after the other.

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
    updates = []
    for (row, seed), path in zip(runs, paths, strict=True):
        found = [entry for entry in _entries(path) if column in entry]
        if not found:
            raise ValueError(f"{path}: no line has the column {column!r}")
        updates += [
            LoggedUpdate(row, labels[row], seed, entry["step"], entry["update"], rounded(entry[column]))
            for entry in found
        ]
    return updates


def _entries(path: Path) -> list[dict[str, Any]]:
    entries = []
    for position, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {position}: {error}") from None
    return entries


def draw(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    """First update of every step faintly, a running median on top; values not finite leave a gap.

    Raises:
        ValueError: as for :func:`read`.
    """
    updates = read(spec, inputs.curves)
    column = spec.table.metric
    rows = list(dict.fromkeys(update.row for update in updates))
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.2)
        named: set[str] = set()
        for row, seed in dict.fromkeys((update.row, update.seed) for update in updates):
            first = [one for one in updates if (one.row, one.seed, one.update) == (row, seed, 0)]
            x = [one.step for one in first]
            y = [math.nan if one.value is None else one.value for one in first]
            colour = style.COLOURS[rows.index(row)]
            axis.plot(x, y, color=colour, alpha=0.28, lw=0.8)
            label = None if row in named else first[0].label
            axis.plot(x, running_median(y), color=colour, lw=2, label=label)
            named.add(row)
        axis.set(yscale="log", xlabel="Training step", ylabel=metric_name(column, spec.scale))
        axis.margins(x=0.01)
        axis.legend(loc="upper right")
        style.plain_numbers(axis)
        figure.tight_layout()
        style.save(figure, path)
    lines = [asdict(update) | {column: update.value} for update in updates]
    return to_csv(["row", "label", "seed", "step", "update", column], lines)


def running_median(values: Sequence[float]) -> list[float]:
    """Median over a centred window of a fortieth of the curve; NaN where the window holds no finite value."""
    half = max(1, len(values) // 80)
    result = []
    for index in range(len(values)):
        window = [v for v in values[max(0, index - half) : index + half + 1] if math.isfinite(v)]
        result.append(median(window) if window else math.nan)
    return result
