"""A metric against the number of steps, or against a parameter of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...config.specs import TableSpec
from ...config.tables import DECIMALS
from ..metrics import metric_name
from ..rows import FULL_SCALES, OWN, FilledTable, TableRow
from . import style


def draw_steps(spec: TableSpec, table: FilledTable) -> Figure:
    """One line per method on logarithmic axes, ours and the reported values; shares and the like are linear.

    At the paper's scale, reported values are hollow markers on dashed lines beside ours. Below it the two
    cannot share an axis, and the reported values get a panel of their own.
    """
    paper, own = spec.scale in FULL_SCALES, spec.scale == OWN
    figure, axes = style.panels(1, width=7.6) if paper or own else style.panels(2)
    handles = []
    for index, rows in enumerate(table.by_method()):
        look = style.look(index)
        handles.append(Line2D([], [], **look, label=rows[0].label))
        _plot_ours(axes[0], [(row.steps, row) for row in rows], index)
        reported = [(row.steps, row.reported) for row in rows if row.reported is not None]
        if reported:
            x, y = zip(*reported, strict=True)
            size = 10 if paper else 7  # beside ours they are rings around them
            axes[-1].plot(x, y, **look, ls=(0, (4, 2)), lw=1.3, mfc="none", mew=1.4, ms=size)
    if paper:
        handles.append(Line2D([], [], color="#666666", ls="--", marker="o", mfc="white", label="reported"))
        names = [("Ours and (dashed) reported", "paper")]
    elif own:
        names = [("", OWN)]
    else:
        names = [("Ours, miniature", spec.scale), ("Reported by the paper, full scale", "paper")]
    linear = spec.table.metric in DECIMALS
    for axis, (title, scale) in zip(axes, names, strict=True):
        axis.set(xscale="log", yscale="linear" if linear else "log", xlabel=_steps_axis(table), title=title)
        axis.set_ylabel(metric_name(spec.table.metric, scale))
        axis.margins(x=0.06, y=0.08)
        steps = sorted({row.steps for row in table.rows})
        if linear:
            style.ticks_across(axis, steps)
        else:
            style.plain_numbers(axis, steps)
        if not axis.lines:
            style.write_no_values(axis)
    columns = min(len(handles), 6)
    figure.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=columns)
    figure.tight_layout(w_pad=3)
    return figure


def _steps_axis(table: FilledTable) -> str:
    """What the axis counts: steps, and in a second line how often a step of each line calls the network."""
    calls: dict[int, list[str]] = {}
    for rows in table.by_method():
        found = {int(row.evaluations) / row.steps for row in rows if row.evaluations.isdigit()}
        if len(found) == 1 and (each := found.pop()).is_integer():
            calls.setdefault(int(each), []).append(rows[0].label)
    if set(calls) <= {1}:
        return "Sampling steps (one network evaluation each)" if calls else "Sampling steps"
    told = [f"{count} for {', '.join(labels)}" for count, labels in sorted(calls.items()) if count > 1]
    return "Sampling steps\n(network evaluations of a step: " + "; ".join(told) + "; else 1)"


def draw_sweep(spec: TableSpec, table: FilledTable) -> Figure:
    """Mean, standard deviation, and every seed; runs without the parameter are horizontal lines.

    The axis of the metric is logarithmic; where a value is not positive, it is linear up to the least
    positive mean. Shares and the like are linear. Each further metric has a panel of its own, with the means.
    """
    shown = [row for row in table.rows if row.ours is not None]
    swept = [(row.group, row.parameter, row) for row in shown if row.parameter is not None]
    swept.sort(key=itemgetter(0, 1))
    groups = [(name, [(x, row) for _, x, row in group]) for name, group in groupby(swept, key=itemgetter(0))]
    levels = [row for row in shown if row.parameter is None]
    others = list(spec.extra_metrics)
    figure, axes = style.panels(1 + len(others), width=5.6 if others else 7.2)
    axis = axes[0]
    for index, (name, points) in enumerate(groups):
        look = style.look(index)
        for x, row in points:
            values = [value or 0.0 for value in row.values]
            axis.scatter([x] * len(values), values, s=14, color=look["color"], alpha=0.4, lw=0, zorder=1)
        _plot_ours(axis, points, index, name)
        for metric, other in zip(others, axes[1:], strict=True):
            means = [row.more[f"ours_{metric}"] or 0.0 for _, row in points]
            other.plot([x for x, _ in points], means, **look, mec="white", mew=0.8)
    for index, row in enumerate(levels, start=len(groups)):
        value, error, colour = row.ours or 0.0, row.ours_std or 0.0, style.look(index)["color"]
        axis.axhline(value, color=colour, ls=(0, (5, 2)), label=row.label)
        if error:
            axis.axhspan(value - error, value + error, color=colour, alpha=0.15, lw=0)
        for metric, other in zip(others, axes[1:], strict=True):
            other.axhline(row.more[f"ours_{metric}"] or 0.0, color=colour, ls=(0, (5, 2)))
    logarithmic = bool(shown) and spec.table.metric not in DECIMALS
    positive = logarithmic and min(value or 0.0 for row in shown for value in row.values) > 0
    above = [row.ours for _, _, row in swept if logarithmic and row.ours is not None and row.ours > 0]
    if positive:
        axis.set_yscale("log")
    elif above:
        axis.set_yscale("symlog", linthresh=min(above))
        # A deviation above its mean would reach down as far below zero.
        least = min(value or 0.0 for row in shown for value in row.values)
        axis.set_ylim(bottom=least - min(above) / 2)
    for metric, panel in zip([spec.table.metric, *others], axes, strict=True):
        panel.set(xlabel=spec.table.axis or spec.table.parameter, ylabel=metric_name(metric, spec.scale))
        panel.margins(x=0.06, y=0.08)
        if not shown:
            style.write_no_values(panel)
    if positive:
        style.plain_numbers(axis, sorted({x for _, x, _ in swept}))
        axis.tick_params(axis="x", labelsize=8)  # 0.75 and 0.8 stand side by side
    for other in axes[1:] if shown else ():
        other.set_ylim(bottom=0)
    if shown:
        axis.legend(loc="best")
    figure.tight_layout()
    return figure


def _plot_ours(
    axis: Axes, points: Sequence[tuple[float, TableRow]], index: int, label: str | None = None
) -> None:
    """Our numbers with their standard deviations, at the given places of the horizontal axis."""
    found = [(x, row.ours, row.ours_std or 0.0) for x, row in points if row.ours is not None]
    if found:
        x, y, error = zip(*found, strict=True)
        bars = error if any(error) else None
        axis.errorbar(x, y, bars, **style.look(index), capsize=3, mec="white", mew=0.8, label=label)
