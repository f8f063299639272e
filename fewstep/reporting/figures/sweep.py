"""A metric against a parameter of the loss, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.pyplot import rc_context

from ...config.specs import TableSpec
from ..formatting import rounded, to_csv
from ..metrics import Metrics, gather, metric_name
from ..rows import IsStale, TableRow, TableRows, fill_table
from . import style


@dataclass(frozen=True)
class SweepPoint:
    """A row of the table, with what a sweep shows beside it."""

    row: TableRow
    parameter: float | None
    """None for a run whose loss does not have the parameter."""
    values: list[float]
    """The metric of every seed."""


@dataclass(frozen=True)
class Sweep:
    table: TableRows
    points: list[SweepPoint]

    def to_csv(self) -> str:
        """The table's columns, the parameter, and the values of the seeds."""
        columns = self.table.columns
        rows = [
            {name: point.row[name] for name in columns}
            | {"parameter": point.parameter, "values": point.values}
            for point in self.points
        ]
        return to_csv([*columns, "parameter", "values"], rows)


def fill(spec: TableSpec, metrics: Metrics, is_stale: IsStale) -> Sweep:
    """The rows of a table with their parameters; arguments and errors as for :func:`fill_table`."""
    cells = {row.id: row.cells for row in spec.rows}
    table = fill_table(spec, metrics, is_stale)
    points = []
    for row in table.rows:
        found = gather(metrics, cells.get(row.row, {}).get(row.protocol, [[]])[0], spec.table.metric)
        values = [rounded(value) or 0.0 for value in found.values] if found else []
        points.append(SweepPoint(row, rounded(spec.parameters.get(row.row)), values))
    return Sweep(table, points)


def draw(spec: TableSpec, sweep: Sweep, path: Path) -> None:
    """Mean, standard deviation, and every seed; runs without the parameter are horizontal lines.

    The axis of the metric is logarithmic unless a value is not positive.
    """
    shown = [point for point in sweep.points if point.row.ours is not None]
    swept = [(point.row.group, point.parameter, point) for point in shown if point.parameter is not None]
    swept.sort(key=itemgetter(0, 1))
    groups = [(name, list(group)) for name, group in groupby(swept, key=itemgetter(0))]
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.2)
        for index, (name, group) in enumerate(groups):
            _curve(axis, name, [(x, point) for _, x, point in group], index)
        levels = [point.row for point in shown if point.parameter is None]
        for index, row in enumerate(levels, start=len(groups)):
            _level(axis, row, index)
        positive = bool(shown) and all(value > 0 for point in shown for value in point.values)
        axis.set(
            yscale="log" if positive else "linear",
            xlabel=spec.table.axis or spec.table.parameter,
            ylabel=metric_name(spec.table.metric, spec.scale),
        )
        axis.margins(x=0.06, y=0.08)
        if positive:
            style.plain_numbers(axis, sorted({x for _, x, _ in swept}))
        if shown:
            axis.legend(loc="best")
        else:
            style.write_no_values(axis)
        figure.tight_layout()
        style.save(figure, path)


def _curve(axis: Axes, name: str, points: Sequence[tuple[float, SweepPoint]], index: int) -> None:
    look = style.look(index)
    for parameter, point in points:
        across = [parameter] * len(point.values)
        axis.scatter(across, point.values, s=14, color=look["color"], alpha=0.4, lw=0, zorder=1)
    x, y = [parameter for parameter, _ in points], [point.row.ours or 0.0 for _, point in points]
    error = [point.row.ours_std or 0.0 for _, point in points]
    axis.errorbar(
        x, y, yerr=error if any(error) else None, **look, capsize=3, mec="white", mew=0.8, label=name
    )


def _level(axis: Axes, row: TableRow, index: int) -> None:
    value, error = row.ours or 0.0, row.ours_std or 0.0
    colour = style.COLOURS[index % len(style.COLOURS)]
    axis.axhline(value, color=colour, ls=(0, (5, 2)), label=row.label)
    if error:
        axis.axhspan(value - error, value + error, color=colour, alpha=0.15, lw=0)
