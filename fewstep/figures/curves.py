"""A metric against the number of steps, ours beside the reported values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.pyplot import rc_context

from ..config.specs import TableSpec
from ..results import Line, metric_name
from . import style


def draw(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """Draw one line per row on logarithmic axes.

    At the paper's scale, reported values are hollow markers on dashed lines beside ours. Below it the two
    cannot share an axis, and the reported values get a panel of their own.
    """
    paper = spec.scale == "paper"
    with rc_context(style.SETTINGS):
        figure, axes = style.panels(1, width=7.6) if paper else style.panels(2)
        names = list(dict.fromkeys(line["row"] for line in lines))
        for index, name in enumerate(names):
            row = [line for line in lines if line["row"] == name]
            _plot(axes[0], row, "ours", index)
            _plot(axes[-1], row, "reported", index, beside=paper)
        titles = (
            ["Ours and (dashed) reported"]
            if paper
            else ["Ours, miniature", "Reported by the paper, full scale"]
        )
        step_counts = sorted({int(line["steps"]) for line in lines})
        for axis, title in zip(axes, titles, strict=True):
            axis.set(xscale="log", yscale="log", xlabel="Number of steps", title=title)
            full = paper or axis is not axes[0]
            axis.set_ylabel(metric_name(spec.table.metric, "paper" if full else spec.scale))
            axis.margins(x=0.06, y=0.08)
            style.plain_numbers(axis, step_counts)
            if not axis.lines:
                axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", color="#888888")
        labels = {line["row"]: line["label"] for line in lines}
        handles = [
            Line2D([], [], **style.look(index), label=labels[name]) for index, name in enumerate(names)
        ]
        if paper:
            handles.append(
                Line2D([], [], color="#666666", ls="--", marker="o", mfc="white", label="reported")
            )
        figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=min(len(handles), 6)
        )
        figure.tight_layout(w_pad=3)
        style.save(figure, path)


def _plot(axis: Axes, row: Sequence[Line], column: str, index: int, beside: bool = False) -> None:
    points = [line for line in row if line[column]]
    if not points:
        return
    x = [int(line["steps"]) for line in points]
    y = [float(line[column]) for line in points]
    look = style.look(index)
    if column == "reported":
        # Larger than our markers, so that they show as rings around them where the two agree.
        axis.plot(x, y, **look, ls=(0, (4, 2)), lw=1.3, mfc="none", mew=1.4, ms=10 if beside else 7)
        return
    error = [float(line["ours_std"] or 0) for line in points]
    axis.errorbar(x, y, yerr=error if any(error) else None, **look, capsize=3, mec="white", mew=0.8)
