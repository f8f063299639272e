"""Rows in the order of a metric, and a metric against the cost of training, with names beside the points."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, pi, sin
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.pyplot import rc_context
from matplotlib.transforms import Bbox, Transform

from ..config.specs import TableSpec
from ..results import Line, metric_name
from . import style

PLACES = [(7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center")]
PLACES += [(7, 8, "left"), (-7, 8, "right"), (7, -14, "left"), (-7, -14, "right")]
NEAR = len(PLACES)
PLACES += [
    (round(radius * cos(angle)), round(radius * sin(angle)) - 3, "left" if cos(angle) > 0 else "right")
    for radius in (24, 36, 48, 62, 76, 92)
    for angle in (pi * twelfth / 12 for twelfth in range(-11, 12, 2))
]
"""Where a point's label may stand: offset in points, alignment; the earlier the better. Beyond the first
NEAR a line leads to the point."""


def draw(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """One row of dots for each row of the table, named at the left, best first; a colour for each NFE.

    Where the table has costs, they stand at the right.
    """
    rows = _by_row(lines)
    step_counts = list(dict.fromkeys(line["nfe_label"] for line in lines))
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.6, height=1.3 + 0.31 * len(rows))
        for place, row in enumerate(rows):
            found = [float(line["ours"]) for line in row if line["ours"]]
            if found:
                axis.plot([min(found), max(found)], [place, place], color="#cccccc", lw=1.4, zorder=1)
        for index, steps in enumerate(step_counts):
            points = [
                (float(line["ours"]), place)
                for place, row in enumerate(rows)
                for line in row
                if line["nfe_label"] == steps and line["ours"]
            ]
            look = style.look(index)
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.scatter(x, y, c=look["color"], marker=look["marker"], s=38, label=f"{steps} NFE", zorder=2)
        axis.set_xlabel(metric_name(spec.table.metric, spec.scale))
        axis.set_yticks(range(len(rows)), [row[0]["label"] for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        _logarithmic(axis, any(line["ours"] for line in lines))
        if any(row[0].get("cost") for row in rows):
            _costs(axis, rows)
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.85 / (0.31 * len(rows))), ncols=len(step_counts)
        )
        style.save(figure, path)


def _costs(axis: Axes, rows: Sequence[Sequence[Line]]) -> None:
    def write(place: float, text: str, transform: Transform, up: str) -> None:
        axis.text(1.09, place, text, transform=transform, ha="right", va=up, color="#555555")

    write(1.0, "cost of\na step", axis.transAxes, "bottom")
    for place, row in enumerate(rows):
        if cost := row[0].get("cost"):
            write(place, f"{float(cost):.2f}", axis.get_yaxis_transform(), "center")


def draw_price(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """The metric of each row's first column against the cost of its training step, both logarithmic."""
    first = [row[0] for row in _by_row(lines)]
    points = [(float(line["cost"]), float(line["ours"]), line["label"]) for line in first if _priced(line)]
    unit = next(line["label"] for line in lines if line["row"] == spec.table.unit)
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=8.4, height=6.4)
        axis.scatter([p[0] for p in points], [p[1] for p in points], c=style.COLOURS[0], s=34, zorder=2)
        axis.set_xlabel(f"Operations of a training step, relative to “{unit}”")
        steps = first[0]["nfe_label"]
        axis.set_ylabel(f"{metric_name(spec.table.metric, spec.scale)} at {steps} NFE")
        axis.margins(x=0.14, y=0.12)
        _logarithmic(axis, bool(points), both=True)
        figure.tight_layout()
        _label(axis, points)
        style.save(figure, path)


def _logarithmic(axis: Axes, filled: bool, both: bool = False) -> None:
    """Logarithmic across, perhaps also up; without values there is nothing to scale by."""
    if not filled:
        axis.text(0.5, 0.5, "no values", transform=axis.transAxes, ha="center", color="#888888")
        return
    axis.set_xscale("log")
    style.plain_x(axis)
    if both:
        axis.set_yscale("log")
        style.plain_numbers(axis)


def _priced(line: Line) -> bool:
    return bool(line["ours"] and line["cost"])


def _label(axis: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Name every point, where it covers least of the points and of the names before it, and near."""
    renderer = axis.figure.canvas.get_renderer()
    shown = axis.transData.transform([point[:2] for point in points]) if points else []
    dots = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in shown]
    names: list[Bbox] = []
    for index in sorted(range(len(points)), key=lambda index: points[index][1]):
        x, y, name = points[index]
        text = axis.annotate(name, (x, y), (0, 0), textcoords="offset points", fontsize=9, color="#333333")
        bare = text.get_window_extent(renderer)
        taken = [*names, *dots[:index], *dots[index + 1 :]]
        scored = [_burden(bare, place, taken, axis) for place in PLACES]
        best = min(range(len(PLACES)), key=scored.__getitem__)
        across, up, side = PLACES[best]
        text.set_position((across, up))
        text.set_horizontalalignment(side)
        names.append(text.get_window_extent(renderer))
        if best >= NEAR:
            line = {"arrowstyle": "-", "color": "#bbbbbb", "lw": 0.7, "shrinkA": 1, "shrinkB": 4}
            axis.annotate("", (x, y), (across, up + 3), textcoords="offset points", arrowprops=line, zorder=1)


def _burden(bare: Bbox, place: tuple[int, int, str], taken: Sequence[Bbox], axis: Axes) -> float:
    """What a name costs at a place, in square pixels covered; ``bare`` is its box beginning at its point."""
    across, up, side = place
    pixels = axis.figure.dpi / 72
    aside = {"left": 0.0, "center": bare.width / 2, "right": bare.width}[side]
    box = bare.translated(across * pixels - aside, up * pixels)
    outside = bare.width * bare.height - _shared(box, axis.get_window_extent())
    # The line that leads there, as some points of it.
    steps = [(bare.x0 + across * pixels * k / 8, bare.y0 + up * pixels * k / 8) for k in range(1, 8)]
    crossed = sum(other.contains(*step) for other in taken for step in steps)
    return outside + sum(_shared(box, other) for other in taken) + 60 * crossed + 2 * hypot(across, up)


def _shared(one: Bbox, other: Bbox) -> float:
    """Area that two boxes share, in pixels."""
    common = Bbox.intersection(one, other)
    return 0.0 if common is None else float(common.width * common.height)


def _by_row(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each row, best first by its first column; without a value last."""
    rows: dict[str, list[Line]] = {}
    for line in lines:
        rows.setdefault(line["row"], []).append(line)
    return sorted(rows.values(), key=lambda row: float(row[0]["ours"] or "inf"))
