"""Every kind of figure, and what draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...common.files import atomic, write_text
from ...config.specs import TableSpec
from . import curves, grid, learning_curves, ranking, scatter, sweep
from .inputs import FigureInputs

_KINDS: dict[str, Callable[[TableSpec, FigureInputs, Path], str]] = {
    "curve": curves.draw,
    "ranking": ranking.draw_ranking,
    "price": ranking.draw_price,
    "sweep": sweep.draw,
    "training": learning_curves.draw,
    "grid": grid.draw,
    "scatter": scatter.draw,
}
"""Each writes a picture to a path and returns its numbers as the text of a CSV file."""


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
