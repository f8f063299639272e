"""Samples laid out by class, one row for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from ...config.specs import TableSpec
from ...evaluation.image_archive import open_images
from ..formatting import to_csv

GAP = 4
SMALLEST = 64
"""Side in pixels below which images are enlarged."""


Chosen = list[tuple[int, np.ndarray]]
"""Index in the archive, and image (H, W, C), uint8."""


def select(path: Path, columns: int, classes: Sequence[int] | None) -> list[tuple[int, Chosen]]:
    """Labels, and the first ``columns`` images of each class in the order of their index.

    Without ``classes``, the ten lowest classes that occur. Reading stops when all places are taken.

    Raises:
        ValueError: the file holds no images of these classes, or images that are not uint8.
    """
    archive = open_images(path)
    if archive.dtype != np.uint8:
        raise ValueError(f"{path}: images are {archive.dtype}, not uint8")
    found: dict[int, Chosen] = {label: [] for label in classes or []}
    first = 0
    for batch, size in enumerate(archive.sizes):
        images = archive.images(batch)
        for offset, label in enumerate(archive.labels(batch).tolist()):
            chosen = found.setdefault(label, []) if classes is None else found.get(label)
            if chosen is not None and len(chosen) < columns:
                chosen.append((first + offset, images[offset].transpose(1, 2, 0)))
        first += size
        if classes is not None and all(len(chosen) == columns for chosen in found.values()):
            break
    rows = [(label, found[label]) for label in (sorted(found)[:10] if classes is None else classes)]
    if not any(chosen for _, chosen in rows):
        raise ValueError(f"{path}: no images of the classes {classes}")
    return rows


def enlarged(image: np.ndarray, smallest: int) -> Image.Image:
    """An image (H, W, C), uint8, enlarged by a whole factor to at least so many pixels, without smoothing."""
    height, width = image.shape[:2]
    factor = max(1, -(-smallest // height))
    colour = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    return Image.fromarray(colour).resize((width * factor, height * factor), Image.Resampling.NEAREST)


def label_font(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, which is Latin; DejaVu Sans, which matplotlib brings, for names in Cyrillic, say."""
    if all(character < "\u0180" for text in texts for character in text):
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def class_name(spec: TableSpec, label: int) -> str:
    """Name of a class, or its number where it has none."""
    return spec.class_names[label] if label < len(spec.class_names) else str(label)


def draw(spec: TableSpec, paths: Sequence[Path]) -> tuple[Image.Image, str]:
    """Lay the images of the first file (the first seed) out on white.

    Small ones are enlarged by a whole factor, without smoothing.

    Raises:
        ValueError: no file of images, or as for :func:`select`.
    """
    if not paths:
        raise ValueError(f"{spec.name}: kind grid takes --images, the first of which is shown")
    rows = select(paths[0], spec.table.columns, spec.table.classes)
    width, height = next(enlarged(chosen[0][1], SMALLEST).size for _, chosen in rows if chosen)
    names = [class_name(spec, label) for label, _ in rows]
    font = label_font(names, max(14, min(height // 5, 28)))
    margin = max(28, height // 3, *(20 + int(font.getlength(name)) for name in names if spec.class_names))
    columns = max(len(chosen) for _, chosen in rows)
    size = (margin + columns * (width + GAP), len(rows) * (height + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    places = []
    for position, (label, chosen) in enumerate(rows):
        top = GAP + position * (height + GAP)
        pen.text((margin - 10, top + height // 2), names[position], fill="#444444", font=font, anchor="rm")
        for column, (index, image) in enumerate(chosen):
            sheet.paste(enlarged(image, SMALLEST), (margin + column * (width + GAP), top))
            places.append({"row": position, "column": column, "label": label, "image": index})
    return sheet, to_csv(["row", "column", "label", "image"], places)
