"""A metric against a parameter of the loss, with the spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.pyplot import rc_context

from ..config.specs import TableSpec
from ..results import IsStale, Line, Metrics, gather, metric_name, number, table_lines, value_of
from . import style


def read(spec: TableSpec, metrics: Metrics, is_stale: IsStale) -> list[Line]:
    """The lines of a table, with the value of the parameter (empty: it has none) and those of the seeds."""
    cells = {row.id: row.cells for row in spec.rows}
    lines = []
    for line in table_lines(spec, metrics, is_stale):
        keys = cells.get(line["row"], {}).get(line["protocol"], [[]])[0]
        found = gather(metrics, keys, spec.table.metric)
        values = [value_of(entry, spec.table.metric) for entry in found.entries] if found else []
        lines.append(
            {
                **line,
                "parameter": number(spec.parameters.get(line["row"])),
                "values": "; ".join(map(number, values)),
            }
        )
    return lines


def draw(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """Mean and standard deviation, and the seeds one by one; runs without the parameter lie across.

    The axis of the metric is logarithmic unless a value is not positive.
    """
    shown = [line for line in lines if line["ours"]]
    swept = sorted((line for line in shown if line["parameter"]), key=lambda line: line["group"])
    groups = [(name, list(group)) for name, group in groupby(swept, key=lambda line: line["group"])]
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.2)
        for index, (name, group) in enumerate(groups):
            _curve(axis, name, sorted(group, key=lambda line: float(line["parameter"])), index)
        for index, line in enumerate((line for line in shown if not line["parameter"]), start=len(groups)):
            _level(axis, line, index)
        positive = shown and all(value > 0 for line in shown for value in _values(line))
        axis.set(
            yscale="log" if positive else "linear",
            xlabel=spec.table.axis or spec.table.parameter,
            ylabel=metric_name(spec.table.metric, spec.scale),
        )
        axis.margins(x=0.06, y=0.08)
        if positive:
            style.plain_numbers(axis, sorted({float(line["parameter"]) for line in swept}))
        if shown:
            axis.legend(loc="best")
        else:
            axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", color="#888888")
        figure.tight_layout()
        style.save(figure, path)


def _values(line: Line) -> list[float]:
    return [float(text) for text in line["values"].split("; ") if text]


def _curve(axis: Axes, name: str, group: Sequence[Line], index: int) -> None:
    x = [float(line["parameter"]) for line in group]
    y = [float(line["ours"]) for line in group]
    error = [float(line["ours_std"] or 0) for line in group]
    look = style.look(index)
    for at, line in zip(x, group, strict=True):
        values = _values(line)
        axis.scatter([at] * len(values), values, s=14, color=look["color"], alpha=0.4, lw=0, zorder=1)
    axis.errorbar(
        x, y, yerr=error if any(error) else None, **look, capsize=3, mec="white", mew=0.8, label=name
    )


def _level(axis: Axes, line: Line, index: int) -> None:
    value, error = float(line["ours"]), float(line["ours_std"] or 0)
    colour = style.COLOURS[index % len(style.COLOURS)]
    axis.axhline(value, color=colour, ls=(0, (5, 2)), label=line["label"])
    if error:
        axis.axhspan(value - error, value + error, color=colour, alpha=0.15, lw=0)
