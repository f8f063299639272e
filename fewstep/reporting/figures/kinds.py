"""Every kind of figure, and what draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...common.files import atomic, write_text
from ...config.specs import TableSpec
from ..metrics import load_metrics
from ..rows import TableRows, fill_table
from ..staleness import is_stale
from . import curves, grid, learning_curves, ranking, scatter, sweep


@dataclass(frozen=True)
class FigureInputs:
    """Files that figures are made from; a kind uses some of them."""

    metrics: list[Path]
    curves: list[Path]
    """train.jsonl files."""
    images: list[Path]
    """Tars of samples."""
    reference: Path | None
    """npz with real points."""


def draw_figure(spec: TableSpec, inputs: FigureInputs, picture: Path, numbers: Path) -> None:
    """Write a picture (PNG) and its numbers (CSV).

    Raises:
        ValueError: not a figure, or inputs that do not fit its kind.
    """
    kind = spec.table.kind
    if kind not in _KINDS:
        raise ValueError(f"{spec.name}: kind {kind!r} is not a figure; use fewstep.table")
    with atomic(picture) as temporary:
        text = _KINDS[kind](spec, inputs, temporary)
    write_text(numbers, text)


def _of_rows(draw: Callable[[TableSpec, TableRows, Path], None]) -> Callable[..., str]:
    """A figure of the rows of a table."""

    def drawn(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
        table = fill_table(spec, load_metrics(inputs.metrics), is_stale)
        draw(spec, table, path)
        return table.to_csv()

    return drawn


def _sweep(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    found = sweep.fill(spec, load_metrics(inputs.metrics), is_stale)
    sweep.draw(spec, found, path)
    return found.to_csv()


def _learning_curves(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    found = learning_curves.read(spec, inputs.curves)
    learning_curves.draw(spec, found, path)
    return learning_curves.curves_csv(spec, found)


def _grid(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    if len(inputs.images) != 1:
        raise ValueError(f"{spec.name}: kind grid takes one --images file, not {len(inputs.images)}")
    rows = grid.select(inputs.images[0], spec.table.columns, spec.table.classes)
    grid.draw(rows, path)
    return grid.grid_csv(rows)


def _scatter(spec: TableSpec, inputs: FigureInputs, path: Path) -> str:
    if inputs.reference is None:
        raise ValueError(f"{spec.name}: kind scatter needs --reference, the real points")
    points = scatter.read(spec, inputs.images, inputs.reference)
    scatter.draw(spec, points, path)
    return scatter.points_csv(points)


_KINDS: dict[str, Callable[[TableSpec, FigureInputs, Path], str]] = {
    "curve": _of_rows(curves.draw),
    "ranking": _of_rows(ranking.draw_ranking),
    "price": _of_rows(ranking.draw_price),
    "sweep": _sweep,
    "training": _learning_curves,
    "grid": _grid,
    "scatter": _scatter,
}
