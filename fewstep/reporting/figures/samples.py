"""Samples by number of steps: a line for each, a column for each class or prompt, one noise in a column.

Real images may stand above them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ...config.specs import TableSpec
from ...evaluation.image_archive import open_images
from ..formatting import to_csv
from .grid import GAP, class_name, enlarged, label_font, select

SMALLEST = 96
"""Side in pixels below which images are enlarged: captions stand above them."""
LETTER = 7
"""Width in pixels of a letter of a caption, about."""
BREAK = 10
"""Pixels more between the lines of two rows."""
REAL = "Real images"


class _Line(NamedTuple):
    row: str
    text: str
    steps: int | None
    images: dict[int, tuple[int, np.ndarray]]
    """Label -> index in its archive, and image (H, W, C), uint8."""


def draw(spec: TableSpec, paths: Sequence[Path], real: Path | None = None) -> tuple[Image.Image, str]:
    """The first image of each class or prompt in every file, on white; small ones are enlarged.

    Args:
        paths: of the first seed's samples, in the order of the rows and of their numbers of steps.
        real: real images, which are a first line; a place is left blank where there is none.

    Raises:
        ValueError: another number of files than lines, a file without a class or prompt of the first or with
            another caption for it, real images of another size, or as for :func:`grid.select`.
    """
    labels = {row.id: row.label for row in spec.table.rows}
    cells = [
        (labels[row.id], seeds[0].steps) for row in spec.rows for seeds in next(iter(row.cells.values()), [])
    ]
    if len(paths) != len(cells) or not cells:
        raise ValueError(f"{spec.name}: {len(paths)} --images for {len(cells)} lines; give one for each")
    chosen = [select(path, 1, spec.table.classes) for path in paths]
    columns = [label for label, found in chosen[0] if found]
    names = _names(spec, paths[0], columns)
    images = [{label: found[0] for label, found in line if found} for line in chosen]
    for path, shown in zip(paths, images, strict=True):
        if missing := [label for label in columns if label not in shown]:
            raise ValueError(f"{path}: no images of the classes {missing}, which {paths[0]} has")
        for label, name in _names(spec, path, columns).items():
            if name != names[label]:
                raise ValueError(f"{path}: caption {label} is {name!r}, but {names[label]!r} in {paths[0]}")
    lines = [
        _Line(row, f"{row}, {steps} step{'s' if steps > 1 else ''}", steps, shown)
        for (row, steps), shown in zip(cells, images, strict=True)
    ]
    if real is not None:
        lines.insert(0, _Line(REAL, REAL, None, _real_images(real, paths[0])))
    width, height = enlarged(images[0][columns[0]][1], SMALLEST).size
    font = label_font([*names.values(), *(line.text for line in lines)], 14)
    margin = 12 + max(int(font.getlength(line.text)) for line in lines)
    texts = [textwrap.wrap(name, max(8, width // LETTER)) for name in names.values()]
    downs = [10 + 17 * max(map(len, texts))]
    for line, following in pairwise(lines):
        downs.append(downs[-1] + height + GAP + (BREAK if line.row != following.row else 0))
    size = (margin + len(columns) * (width + GAP), downs[-1] + height + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(texts):
        place = (margin + column * (width + GAP) + width // 2, downs[0] - 6)
        pen.multiline_text(place, "\n".join(words), fill="#444444", font=font, anchor="md", align="center")
    places = []
    for line, down in zip(lines, downs, strict=True):
        pen.text((margin - 8, down + height // 2), line.text, fill="#444444", font=font, anchor="rm")
        for column, label in enumerate(columns):
            if label in line.images:
                index, image = line.images[label]
                sheet.paste(enlarged(image, SMALLEST), (margin + column * (width + GAP), down))
                places.append([line.text, line.steps, column, label, names[label], index])
    header = ["line", "steps", "column", "label", "caption", "image"]
    return sheet, to_csv(header, [dict(zip(header, place, strict=True)) for place in places])


def _real_images(path: Path, samples: Path) -> dict[int, tuple[int, np.ndarray]]:
    """Label -> index in the archive, and real image (H, W, C), uint8; there may be none."""
    archive, shape = open_images(path), open_images(samples).shape
    if archive.shape != shape or archive.dtype != np.uint8:
        raise ValueError(f"{path}: real images are {archive.dtype} {archive.shape}, samples uint8 {shape}")
    found = zip(archive.labels(0).tolist(), archive.images(0), strict=True)
    return {label: (index, image.transpose(1, 2, 0)) for index, (label, image) in enumerate(found)}


def _names(spec: TableSpec, path: Path, labels: Sequence[int]) -> dict[int, str]:
    """The caption of each label; where a file has no captions, the class's name, or its number."""
    captions = open_images(path).card.get("captions", {})
    return {label: captions.get(str(label), class_name(spec, label)) for label in labels}
