"""Methods in the order of a metric, and a metric against the cost of training."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ...config.specs import TableSpec
from ...config.tables import DECIMALS
from ..metrics import metric_name
from ..rows import FilledTable
from . import style

FEW = 15
"""Methods whose names find room beside their points."""

Place = tuple[int, int, Literal["left", "center", "right"]]
PLACES: list[Place] = [(7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center")]
PLACES += [(7, 8, "left"), (-7, 8, "right"), (7, -14, "left"), (-7, -14, "right")]
NEAR = len(PLACES)
PLACES += [
    (round(radius * cos(angle)), round(radius * sin(angle)) - 3, "left" if cos(angle) > 0 else "right")
    for radius in (17, 24, 36, 48, 62, 76, 92)
    for angle in (pi * twelfth / 12 for twelfth in range(-11, 12, 2))
]
"""Where a point's label may stand: offset in points, alignment; the earlier the better. Beyond the first
NEAR a line leads to the point."""


def draw_ranking(spec: TableSpec, table: FilledTable) -> Figure:
    """One line of dots for each method, named at the left, best first; a colour for each number of steps.

    Where the table has costs, they stand at the right.
    """
    methods = table.best_first()
    figure, (axis,) = style.panels(1, width=7.6, height=1.3 + 0.31 * len(methods))
    for place, rows in enumerate(methods):
        found = [row.ours for row in rows if row.ours is not None]
        if found:
            axis.plot([min(found), max(found)], [place, place], color="#cccccc", lw=1.4, zorder=1)
    step_labels = table.step_labels or list(dict.fromkeys(row.nfe_label for row in table.rows))
    for index, label in enumerate(step_labels):
        points = [
            (row.ours, place)
            for place, rows in enumerate(methods)
            for row in rows
            if row.nfe_label == label and row.ours is not None
        ]
        look = style.look(index)
        x, y = zip(*points, strict=True) if points else ((), ())
        axis.scatter(x, y, c=look["color"], marker=look["marker"], s=38, label=f"{label} NFE", zorder=2)
    axis.set_xlabel(metric_name(spec.table.metric, spec.scale))
    axis.set_yticks(range(len(methods)), [rows[0].label for rows in methods])
    axis.set_ylim(len(methods) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    _scale(axis, any(row.ours is not None for row in table.rows), x=spec.table.metric not in DECIMALS)
    costs = [(place, rows[0].cost) for place, rows in enumerate(methods) if rows[0].cost is not None]
    beside: dict[str, Any] = {"ha": "right", "color": "#555555"}
    if costs:
        axis.text(1.09, 1.0, "cost of\na step", transform=axis.transAxes, va="bottom", **beside)
    for place, cost in costs:
        axis.text(1.09, place, f"{cost:.2f}", transform=axis.get_yaxis_transform(), va="center", **beside)
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.85 / (0.31 * len(methods))), ncols=len(step_labels)
    )
    return figure


def draw_price(spec: TableSpec, table: FilledTable) -> Figure:
    """The metric of each method's first number against the cost of its training step.

    Methods whose first number is of other steps than most are left out. Both are logarithmic, if the metric
    has logarithms. More than FEW methods have numbers instead of names, in the order of the metric, which a
    key at the right explains.
    """
    first = [rows[0] for rows in table.best_first()]
    labels = [row.nfe_label for row in first]
    steps = max(labels, key=labels.count)
    points = [
        (row.cost, row.ours, row.label)
        for row in first
        if row.cost is not None and row.ours is not None and row.nfe_label == steps
    ]
    unit = next(row.label for row in table.rows if row.row == spec.table.unit)
    crowded = len(points) > FEW
    figure, (axis,) = style.panels(1, width=11 if crowded else 8.4, height=8 if crowded else 6.4)
    size = 18 if crowded else 34
    axis.scatter([p[0] for p in points], [p[1] for p in points], c=style.COLOURS[0], s=size, zorder=2)
    axis.set_xlabel(f"Operations of a training step, relative to “{unit}”")
    if crowded:
        key = "\n".join(f"{number:>2}  {name}" for number, (*_, name) in enumerate(points, start=1))
        axis.text(1.03, 1, key, transform=axis.transAxes, va="top", fontsize=9, linespacing=1.35)
        points = [(x, y, str(number)) for number, (x, y, _) in enumerate(points, start=1)]
    axis.set_ylabel(f"{metric_name(spec.table.metric, spec.scale)} at {steps} NFE")
    axis.margins(x=0.14, y=0.12)
    _scale(axis, bool(points), x=True, y=spec.table.metric not in DECIMALS)
    figure.tight_layout()
    _label(axis, points)
    return figure


def _scale(axis: Axes, filled: bool, x: bool, y: bool = False) -> None:
    """Logarithmic across, or up, where asked for; without values there is nothing to scale by."""
    if not filled:
        style.write_no_values(axis)
        return
    if x:
        axis.set_xscale("log")
        style.plain_x(axis)
    if y:
        axis.set_yscale("log")
        style.plain_numbers(axis)


def _label(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write the name of every point near it, where it covers least of the points and the names before it."""
    pixels = [axis.transData.transform(point[:2]) for point in points]
    dots = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    names: list[Bbox] = []
    for index in sorted(range(len(points)), key=lambda index: points[index][1]):
        x, y, name = points[index]
        text = axis.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=9, color="#333333")
        bare = text.get_window_extent()
        taken = [*names, *dots[:index], *dots[index + 1 :]]
        scored = [_burden(bare, place, taken, axis) for place in PLACES]
        best = min(range(len(PLACES)), key=scored.__getitem__)
        across, up, side = PLACES[best]
        text.set_position((across, up))
        text.set_horizontalalignment(side)
        names.append(text.get_window_extent())
        if best >= NEAR:
            line = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.7, "shrinkA": 1, "shrinkB": 4}
            axis.annotate("", (x, y), (across, up + 3), textcoords="offset points", arrowprops=line, zorder=1)


def _burden(bare: Bbox, place: Place, taken: Sequence[Bbox], axis: Axes) -> float:
    """How bad a place is for a name, in covered square pixels; ``bare`` is its box at the point."""
    across, up, side = place
    pixels = axis.figure.dpi / 72
    aside = {"left": 0.0, "center": bare.width / 2, "right": bare.width}[side]
    box = bare.translated(across * pixels - aside, up * pixels)
    outside = bare.width * bare.height - _shared(box, axis.get_window_extent())
    # The line that leads there, as some points of it.
    steps = [(bare.x0 + across * pixels * k / 24, bare.y0 + up * pixels * k / 24) for k in range(1, 24)]
    crossed = sum(other.contains(*step) for other in taken for step in steps)
    return outside + sum(_shared(box, other) for other in taken) + 60 * crossed + 2 * hypot(across, up)


def _shared(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in pixels."""
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)
