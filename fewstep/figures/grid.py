"""Samples laid out by class, one row for each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..results import Line

GAP = 4
SMALLEST = 64
"""Side in pixels below which images are enlarged."""

Grid = list[tuple[int, list[np.ndarray]]]
"""(class, images of shape (H, W, C), uint8), one entry for each row."""


def batches(path: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index of the first image, images (n, C, H, W) uint8, labels (n,)) of each batch, in file order."""
    waiting: dict[str, dict[str, np.ndarray]] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            if kind not in ("images.npy", "labels.npy"):
                continue
            stream = tar.extractfile(member)
            assert stream is not None
            batch = waiting.setdefault(key, {})
            batch[kind] = np.load(io.BytesIO(stream.read()), allow_pickle=False)
            if len(batch) == 2:
                del waiting[key]
                yield int(key), batch["images.npy"], batch["labels.npy"]


def select(path: Path, columns: int, classes: list[int] | None) -> tuple[list[Line], Grid]:
    """The first ``columns`` images of each class, in the order of their index.

    Without ``classes``, the ten lowest classes that occur. Reading stops when all places are taken.

    Raises:
        ValueError: the file holds no images (of these classes), or images that are not uint8.
    """
    rows: dict[int, list[tuple[int, np.ndarray]]] = {name: [] for name in classes or []}
    for first, images, labels in batches(path):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{path}: images are {images.dtype} {images.shape}, not uint8 (n, C, H, W)")
        for offset, label in enumerate(labels.tolist()):
            if classes is None:
                rows.setdefault(label, [])
            if label in rows and len(rows[label]) < columns:
                rows[label].append((first + offset, images[offset].transpose(1, 2, 0)))
        if classes is not None and all(len(row) == columns for row in rows.values()):
            break
    kept = sorted(rows) if classes is None else classes
    kept = kept[:10] if classes is None else kept
    if not any(rows[name] for name in kept):
        raise ValueError(f"{path}: no images" + (f" of the classes {classes}" if classes else ""))
    lines = [
        {"row": str(row), "column": str(column), "label": str(name), "image": str(index)}
        for row, name in enumerate(kept)
        for column, (index, _) in enumerate(rows[name])
    ]
    return lines, [(name, [image for _, image in rows[name]]) for name in kept]


def draw(grid: Grid, path: Path) -> None:
    """Lay the images out on white; small ones are enlarged by a whole factor, without smoothing."""
    height, width = next(images[0].shape[:2] for _, images in grid if images)
    factor = max(1, -(-SMALLEST // height))
    height, width = height * factor, width * factor
    margin = max(28, height // 3)
    columns = max(len(images) for _, images in grid)
    size = (margin + columns * (width + GAP), len(grid) * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=max(14, min(height // 5, 28)))
    for row, (name, images) in enumerate(grid):
        top = GAP + row * (height + GAP)
        pen.text((margin - 10, top + height // 2), str(name), fill="#444444", font=font, anchor="rm")
        for column, image in enumerate(images):
            colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
            tile = Image.fromarray(colour).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (margin + column * (width + GAP), top))
    sheet.save(path, format="PNG")
