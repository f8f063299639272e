"""What the plots share: fonts, colours that colour-blind readers can tell apart, and how they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    LogFormatterMathtext,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

# Okabe and Ito's palette without its yellow, which is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
FINE = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""Multiples of powers of ten with ticks, where an axis is short."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "text.parse_math": False,  # a label with two dollar signs is no formula
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
}
"""Of matplotlib, while a figure is drawn and saved."""


def panels(
    count: int, width: float = 5.6, height: float = 4.2, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels, ``columns`` of them (or all) side by side; sizes of one in inches."""
    columns = columns or count
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def look(index: int) -> dict[str, Any]:
    """Colour and marker of the ``index``-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def write_no_values(axis: Axes) -> None:
    axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", color="#888888")


def plain_numbers(axis: Axes, x: Sequence[float] = ()) -> None:
    """On a vertical logarithmic axis write 0.5, 2 and 100 instead of powers of ten; put ticks at ``x``."""
    low, high = axis.get_ylim()
    ratio = max(high, 1e-12) / max(low, 1e-12)
    if ratio < 3:  # too short for more than two of those below
        axis.yaxis.set_major_locator(MaxNLocator(6))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter("{x:g}")
    elif ratio < 10:
        _ticks_at(axis.yaxis, FINE)
    else:
        _ticks_at(axis.yaxis, (1.0, 2.0, 5.0) if ratio < 1000 else (1.0,))
    if x:
        ticks_across(axis, x)


def ticks_across(axis: Axes, x: Sequence[float]) -> None:
    """Ticks at ``x``, and nowhere else, on a horizontal axis."""
    axis.xaxis.set_major_locator(FixedLocator(x))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")


def plain_x(axis: Axes) -> None:
    """The same on a horizontal logarithmic axis, with ticks at 1, 1.5, 2, 3, 5 and 7 of each power."""
    _ticks_at(axis.xaxis, FINE)


def _ticks_at(axis: Axis, multiples: Sequence[float]) -> None:
    """Ticks at these multiples of powers of ten."""
    axis.set_major_locator(LogLocator(subs=multiples))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> None:
    """Save as PNG at 160 dots per inch, without the date, so that equal data give equal files.

    Powers of ten that are still formulas, which SETTINGS does not show, become plain numbers.
    """
    for axis in (part for axes in figure.axes for part in (axes.xaxis, axes.yaxis)):
        if isinstance(axis.get_major_formatter(), LogFormatterMathtext):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white", metadata={"Software": "fewstep"})
