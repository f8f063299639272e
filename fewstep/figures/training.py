"""A logged quantity against the training step."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from matplotlib.pyplot import rc_context

from ..config.specs import TableSpec
from ..results import Line, metric_name
from . import style


def read(spec: TableSpec, paths: Sequence[Path]) -> list[Line]:
    """The logged column of every curve, one line per optimizer update.

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
    lines = []
    for (row, seed), path in zip(runs, paths, strict=True):
        found = [entry for entry in _entries(path) if column in entry]
        if not found:
            raise ValueError(f"{path}: no line has the column {column!r}")
        lines += [
            {
                "row": row,
                "label": labels[row],
                "seed": str(seed),
                "step": str(entry["step"]),
                "update": str(entry["update"]),
                column: "" if entry[column] is None else f"{float(entry[column]):.6g}",
            }
            for entry in found
        ]
    return lines


def _entries(path: Path) -> list[dict[str, object]]:
    entries = []
    for position, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entries.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: line {position}: {error}") from None
    return entries


def draw(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """First update of every step faintly, a running median on top; values not finite leave a gap."""
    column = spec.table.metric
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.2)
        curves = dict.fromkeys((line["row"], line["seed"]) for line in lines)
        rows = list(dict.fromkeys(row for row, _ in curves))
        named: set[str] = set()
        for row, seed in curves:
            points = [
                line for line in lines if (line["row"], line["seed"], line["update"]) == (row, seed, "0")
            ]
            x = [int(line["step"]) for line in points]
            y = [float(line[column] or "nan") for line in points]
            colour = style.COLOURS[rows.index(row)]
            axis.plot(x, y, color=colour, alpha=0.28, lw=0.8)
            label = None if row in named else points[0]["label"]
            axis.plot(x, running_median(y), color=colour, lw=2, label=label)
            named.add(row)
        axis.set(yscale="log", xlabel="Training step", ylabel=metric_name(column, spec.scale))
        axis.margins(x=0.01)
        axis.legend(loc="upper right")
        style.plain_numbers(axis)
        figure.tight_layout()
        style.save(figure, path)


def running_median(values: Sequence[float]) -> list[float]:
    """Median over a centred window of a fortieth of the curve; NaN where the window holds no finite value."""
    half = max(1, len(values) // 80)
    result = []
    for index in range(len(values)):
        window = [v for v in values[max(0, index - half) : index + half + 1] if math.isfinite(v)]
        result.append(median(window) if window else math.nan)
    return result
