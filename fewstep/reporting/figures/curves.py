"""A metric against the number of steps, ours beside the reported values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.pyplot import rc_context

from ...config.specs import TableSpec
from ..metrics import metric_name
from ..rows import TableRow
from . import style
from .inputs import FigureInputs


def draw(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    """Draw one line per method on logarithmic axes.

    At the paper's scale, reported values are hollow markers on dashed lines beside ours. Below it the two
    cannot share an axis, and the reported values get a panel of their own.
    """
    paper = spec.scale == "paper"
    table = inputs.fill_table(spec)
    with rc_context(style.SETTINGS):
        figure, axes = style.panels(1, width=7.6) if paper else style.panels(2)
        methods = table.by_method()
        for index, rows in enumerate(methods):
            _plot_ours(axes[0], rows, index)
            _plot_reported(axes[-1], rows, index, size=10 if paper else 7)
        titles = (
            ["Ours and (dashed) reported"]
            if paper
            else ["Ours, miniature", "Reported by the paper, full scale"]
        )
        step_counts = sorted({row.steps for row in table.rows})
        for axis, title in zip(axes, titles, strict=True):
            axis.set(xscale="log", yscale="log", xlabel="Number of steps", title=title)
            full = paper or axis is not axes[0]
            axis.set_ylabel(metric_name(spec.table.metric, "paper" if full else spec.scale))
            axis.margins(x=0.06, y=0.08)
            style.plain_numbers(axis, step_counts)
            if not axis.lines:
                style.write_no_values(axis)
        handles = [
            Line2D([], [], **style.look(index), label=rows[0].label) for index, rows in enumerate(methods)
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
    return table.to_csv()


def _plot_ours(axis: Axes, rows: Sequence[TableRow], index: int) -> None:
    points = [(row.steps, row.ours, row.ours_std or 0.0) for row in rows if row.ours is not None]
    if points:
        x, y, error = zip(*points, strict=True)
        look = style.look(index)
        axis.errorbar(x, y, yerr=error if any(error) else None, **look, capsize=3, mec="white", mew=0.8)


def _plot_reported(axis: Axes, rows: Sequence[TableRow], index: int, size: int) -> None:
    """Hollow markers; larger than ours where both are shown, so that they are rings around ours."""
    points = [(row.steps, row.reported) for row in rows if row.reported is not None]
    if points:
        axis.plot(
            *zip(*points, strict=True),
            **style.look(index),
            ls=(0, (4, 2)),
            lw=1.3,
            mfc="none",
            mew=1.4,
            ms=size,
        )
