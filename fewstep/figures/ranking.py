"""Rows in the order of a metric, and a metric against the cost of training, with names beside the points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.pyplot import rc_context
from matplotlib.transforms import Bbox, Transform

from ..config.specs import TableSpec
from ..results import Line, metric_name
from . import style

PLACES = [(7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center")]
PLACES += [(7, 8, "left"), (-7, 8, "right"), (7, -14, "left"), (-7, -14, "right")]
"""Where a point's label may stand: offset in points, alignment; the earlier the better."""


def draw(spec: TableSpec, lines: Sequence[Line], path: Path) -> None:
    """One row of dots for each row of the table, named at the left, best first; a colour for each NFE.

    Where the table has costs, they stand at the right.
    """
    rows = _by_row(lines)
    nfes = list(dict.fromkeys(line["nfe_label"] for line in lines))
    with rc_context(style.SETTINGS):
        figure, (axis,) = style.panels(1, width=7.6, height=1.3 + 0.31 * len(rows))
        for place, row in enumerate(rows):
            found = [float(line["ours"]) for line in row if line["ours"]]
            if found:
                axis.plot([min(found), max(found)], [place, place], color="#cccccc", lw=1.4, zorder=1)
        for index, nfe in enumerate(nfes):
            points = [
                (float(line["ours"]), place)
                for place, row in enumerate(rows)
                for line in row
                if line["nfe_label"] == nfe and line["ours"]
            ]
            look = style.look(index)
            x, y = zip(*points, strict=True) if points else ((), ())
            axis.scatter(x, y, c=look["color"], marker=look["marker"], s=38, label=f"{nfe} NFE", zorder=2)
        axis.set_xlabel(metric_name(spec.table.metric, spec.scale))
        axis.set_yticks(range(len(rows)), [row[0]["label"] for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        _logarithmic(axis, any(line["ours"] for line in lines))
        if any(row[0].get("cost") for row in rows):
            _costs(axis, rows)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.85 / (0.31 * len(rows))), ncols=len(nfes))
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
        figure, (axis,) = style.panels(1, width=8.4, height=5.6)
        axis.scatter([p[0] for p in points], [p[1] for p in points], c=style.COLOURS[0], s=34, zorder=2)
        axis.set_xlabel(f"Operations of a training step, relative to “{unit}”")
        nfe = first[0]["nfe_label"]
        axis.set_ylabel(f"{metric_name(spec.table.metric, spec.scale)} at {nfe} NFE")
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
    """Name every point, each where it covers least of the points and of the names before it."""
    canvas = axis.figure.canvas
    shown = axis.transData.transform([point[:2] for point in points]) if points else []
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in shown]
    frame = axis.get_window_extent()
    for x, y, name in sorted(points, key=lambda point: point[1]):
        best = None
        for across, up, side in PLACES:
            text = axis.annotate(
                name, (x, y), (across, up), textcoords="offset points", ha=side, fontsize=9, color="#333333"
            )
            box = text.get_window_extent(canvas.get_renderer())
            outside = box.width * box.height - _shared(box, frame)
            covered = outside + sum(_shared(box, other) for other in taken)
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = covered, text, box
            else:
                text.remove()
        assert best is not None
        taken.append(best[2])


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
