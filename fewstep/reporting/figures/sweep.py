"""A metric against a parameter of the loss, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.pyplot import rc_context

from ...config.specs import TableSpec
from ..metrics import metric_name
from ..rows import TableRow
from . import style
from .inputs import FigureInputs


def draw(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    """Mean, standard deviation, and every seed; runs without the parameter are horizontal lines.

    The axis of the metric is logarithmic unless a value is not positive.
    """
    table = inputs.fill_table(spec)
    shown = [row for row in table.rows if row.ours is not None]
    swept = [(row.group, row.parameter, row) for row in shown if row.parameter is not None]
    swept.sort(key=itemgetter(0, 1))
    groups = [(name, list(group)) for name, group in groupby(swept, key=itemgetter(0))]
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.2)
        for index, (name, group) in enumerate(groups):
            _curve(axis, name, [(x, row) for _, x, row in group], index)
        levels = [row for row in shown if row.parameter is None]
        for index, row in enumerate(levels, start=len(groups)):
            _level(axis, row, index)
        positive = bool(shown) and min(value or 0.0 for row in shown for value in row.values) > 0
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
    return table.to_csv()


def _curve(axis: Axes, name: str, points: Sequence[tuple[float, TableRow]], index: int) -> None:
    look = style.look(index)
    for parameter, row in points:
        values = [value or 0.0 for value in row.values]
        axis.scatter([parameter] * len(values), values, s=14, color=look["color"], alpha=0.4, lw=0, zorder=1)
    x, y = [parameter for parameter, _ in points], [row.ours or 0.0 for _, row in points]
    error = [row.ours_std or 0.0 for _, row in points]
    axis.errorbar(
        x, y, yerr=error if any(error) else None, **look, capsize=3, mec="white", mew=0.8, label=name
    )


def _level(axis: Axes, row: TableRow, index: int) -> None:
    value, error = row.ours or 0.0, row.ours_std or 0.0
    colour = style.COLOURS[index % len(style.COLOURS)]
    axis.axhline(value, color=colour, ls=(0, (5, 2)), label=row.label)
    if error:
        axis.axhspan(value - error, value + error, color=colour, alpha=0.15, lw=0)
