"""Samples by number of steps: a line for each, a column for each class or prompt, one noise in a column."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...config.specs import TableSpec
from ...evaluation.image_archive import open_images
from ..formatting import to_csv
from .grid import GAP, class_name, enlarged, select

SMALLEST = 96
"""Side in pixels below which images are enlarged: captions stand above them."""
LETTER = 7
"""Width in pixels of a letter of a caption, about."""


def draw(spec: TableSpec, paths: Sequence[Path]) -> tuple[Image.Image, str]:
    """The first image of each class or prompt in every file, on white; small ones are enlarged.

    Args:
        paths: of the first seed's samples, in the order of the rows and of their numbers of steps.

    Raises:
        ValueError: another number of files than lines, a file without a class or prompt of the first or with
            another caption for it, or as for :func:`grid.select`.
    """
    labels = {row.id: row.label for row in spec.table.rows}
    lines = [
        (f"{labels[row.id]}, {cells[0].steps} step{'s' if cells[0].steps > 1 else ''}", cells[0])
        for row in spec.rows
        for cells in next(iter(row.cells.values()), [])
    ]
    if len(paths) != len(lines) or not lines:
        raise ValueError(f"{spec.name}: {len(paths)} --images for {len(lines)} lines; give one for each")
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
    tiles = [[enlarged(line[label][1], SMALLEST) for label in columns] for line in images]
    width, height = tiles[0][0].size
    font = ImageFont.load_default(size=14)
    margin = 12 + max(int(font.getlength(text)) for text, _ in lines)
    texts = [textwrap.wrap(name, max(8, width // LETTER)) for name in names.values()]
    top = 10 + 17 * max(map(len, texts))
    size = (margin + len(columns) * (width + GAP), top + len(lines) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, words in enumerate(texts):
        place = (margin + column * (width + GAP) + width // 2, top - 6)
        pen.multiline_text(place, "\n".join(words), fill="#444444", font=font, anchor="md", align="center")
    places = []
    for position, ((text, cell), line) in enumerate(zip(lines, tiles, strict=True)):
        down = top + position * (height + GAP)
        pen.text((margin - 8, down + height // 2), text, fill="#444444", font=font, anchor="rm")
        for column, tile in enumerate(line):
            sheet.paste(tile, (margin + column * (width + GAP), down))
            label = columns[column]
            index, _ = images[position][label]
            places.append([text, cell.steps, column, label, names[label], index])
    header = ["line", "steps", "column", "label", "caption", "image"]
    return sheet, to_csv(header, [dict(zip(header, place, strict=True)) for place in places])


def _names(spec: TableSpec, path: Path, labels: Sequence[int]) -> dict[int, str]:
    """The caption of each label; where a file has no captions, the class's name, or its number."""
    captions = open_images(path).card.get("captions", {})
    return {label: captions.get(str(label), class_name(spec, label)) for label in labels}
