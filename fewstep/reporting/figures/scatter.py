"""Samples that are points of the plane, a panel for each run, beside the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...common.array_files import open_npz
from ...config.specs import TableSpec
from ...evaluation.image_archive import open_images
from ..formatting import to_csv
from . import style

SHOWN = 2_000
"""Points in a panel: the first ones."""
MARGIN = 0.25
"""Room around the real points, in their extent."""
REAL = "data"


def read(spec: TableSpec, paths: Sequence[Path], reference: Path) -> dict[str, np.ndarray]:
    """The points that are drawn: row id -> points (n, 2); the real ones first, under `data`.

    Raises:
        ValueError: another number of files than rows, or samples that are not points of the plane.
    """
    rows = [row for row, _ in spec.ordered_runs]
    if len(paths) != len(rows):
        raise ValueError(f"{spec.name}: {len(paths)} --images for the rows {rows}; give one for each")
    with open_npz(reference) as content:
        real = content["features"] if "features" in content else np.empty((0, 0))
    if real.ndim != 2 or real.shape[1] != 2:
        raise ValueError(f"{reference}: holds no points of the plane (features {real.shape})")
    found = {REAL: real[:SHOWN]}
    for row, path in zip(rows, paths, strict=True):
        archive = open_images(path)
        if archive.dtype != np.float32 or archive.shape != (2, 1, 1):
            shape = (archive.count, *archive.shape)
            raise ValueError(f"{path}: samples are {archive.dtype} {shape}, not float32 (n, 2, 1, 1)")
        points = np.concatenate([archive.images(batch) for batch in range(len(archive.sizes))])
        found[row] = points[:SHOWN, :, 0, 0]
    return found


def draw(spec: TableSpec, paths: Sequence[Path], reference: Path | None) -> tuple[Figure, str]:
    """Panels with equal axes, four in a row; each says the share of points outside of it.

    Raises:
        ValueError: no reference, or as for :func:`read`.
    """
    if reference is None:
        raise ValueError(f"{spec.name}: kind scatter needs --reference, the real points")
    points = read(spec, paths, reference)
    labels = {row.id: row.label for row in spec.table.rows}
    real = points[REAL]
    low, high = real.min(0), real.max(0)
    room = MARGIN * (high - low)
    low, high = low - room, high + room
    figure, axes = style.panels(len(points), width=2.9, height=2.9, columns=4)
    for axis, (row, values) in zip(axes, points.items(), strict=True):
        axis.scatter(real[:, 0], real[:, 1], s=2.0, color="#b0b0b0", lw=0, rasterized=True)
        if row != REAL:
            x, y = values.T
            axis.scatter(x, y, s=2.5, color=style.COLOURS[0], alpha=0.6, lw=0, rasterized=True)
        outside = float(((values < low) | (values > high)).any(1).mean())
        if outside:
            text = f"{outside:.1%} outside"
            axis.text(0.98, 0.02, text, transform=axis.transAxes, ha="right", fontsize=8)
        axis.set(title=labels.get(row, "Data"), xticks=[], yticks=[], aspect="equal")
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axis.grid(visible=False)
        axis.spines[:].set(visible=True, color="#d8d8d8")
    figure.tight_layout(h_pad=2.5)
    places = [
        {"row": row, "index": index, "x": float(f"{x:.5g}"), "y": float(f"{y:.5g}")}
        for row, values in points.items()
        for index, (x, y) in enumerate(values.tolist())
    ]
    return figure, to_csv(["row", "index", "x", "y"], places)
