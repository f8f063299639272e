"""Figures, one function for each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL.Image import Image

from ...common.files import atomic, write_text
from ...common.provenance import is_stale
from ...config.specs import TableSpec
from ..metrics import load_metrics
from ..rows import FilledTable, fill_table
from . import curves, grid, learning_curves, ranking, samples, scatter, style

_OF_METRICS: dict[str, Callable[[TableSpec, FilledTable], Figure]] = {
    "curve": curves.draw_steps,
    "sweep": curves.draw_sweep,
    "ranking": ranking.draw_ranking,
    "price": ranking.draw_price,
}


def draw_figure(
    spec: TableSpec,
    picture: Path,
    numbers: Path,
    *,
    metrics: Sequence[Path] = (),
    logs: Sequence[Path] = (),
    images: Sequence[Path] = (),
    reference: Path | None = None,
    real: Path | None = None,
) -> None:
    """Write a picture (PNG) and its numbers (CSV). Each kind of figure uses some of the files.

    Args:
        metrics: Metrics files.
        logs: train.jsonl files.
        images: Tars of samples.
        reference: npz with real points.
        real: Tar of real images.

    Raises:
        ValueError: not a figure, or inputs that do not fit its kind.
    """
    kind = spec.table.kind
    drawn: Figure | Image
    with rc_context(style.SETTINGS):
        if kind in _OF_METRICS:
            table = fill_table(spec, load_metrics(metrics), is_stale)
            drawn, text = _OF_METRICS[kind](spec, table), table.to_csv()
        elif kind == "training":
            drawn, text = learning_curves.draw(spec, logs)
        elif kind == "scatter":
            drawn, text = scatter.draw(spec, images, reference)
        elif kind == "grid":
            drawn, text = grid.draw(spec, images)
        elif kind == "samples":
            drawn, text = samples.draw(spec, images, real)
        else:
            raise ValueError(f"{spec.name}: kind {kind!r} is not a figure; use fewstep.table")
        with atomic(picture) as temporary:
            if isinstance(drawn, Image):
                drawn.save(temporary, format="PNG")
            else:
                style.save(drawn, temporary)
    write_text(numbers, text)
