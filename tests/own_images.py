"""Folders of small images, and plans of the preset for own images."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import ROOT, make_plan
from PIL import Image, ImageDraw

from fewstep.config.base import complete, merge, read_yaml
from fewstep.plan import Plan

FOLDER = Path("data/own")
"""Where config/own.yaml looks for them, in the working directory."""


def picture(number: int, round_: bool, size: tuple[int, int]) -> Image.Image:
    """A disc or a square in a colour of its own."""
    image = Image.new("RGB", size, (number * 7 % 60, number * 13 % 60, number * 29 % 60))
    draw = ImageDraw.Draw(image)
    box = [size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4]
    fill = tuple(150 + number * step % 100 for step in (31, 53, 71))
    (draw.ellipse if round_ else draw.rectangle)(box, fill=fill)
    return image


def draw(counts: Mapping[str, int], size: tuple[int, int] = (32, 32), first: int = 0) -> None:
    """PNG files below FOLDER: so many in each folder, numbered from ``first``."""
    for place, (name, count) in enumerate(counts.items()):
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(first, first + count):
            picture(number, place % 2 == 0, size).save(folder / f"{number}.png")


def draw_parquet(path: Path, labels: Sequence[int], names: list[str] | None = None) -> None:
    """A Parquet file as the hub has it; with ``names``, as the package `datasets` writes it."""
    import pyarrow
    from pyarrow import parquet

    cells = []
    for number, label in enumerate(labels):
        content = io.BytesIO()
        picture(number, label == 0, (32, 32)).save(content, "PNG")
        cells.append({"bytes": content.getvalue(), "path": f"{number}.png"})
    table = pyarrow.table({"image": cells, "label": list(labels)})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def own_plan(
    overrides: dict[str, Any] | None = None, resolution: int | None = 32, based_on: str | None = None
) -> Plan:
    """The plan of config/own.yaml with some changes; ``resolution`` None: left out."""
    given = read_yaml(ROOT / "config/own.yaml")
    given["overrides"]["settings"]["datasets"]["own"]["resolution"] = resolution
    changes: dict[str, Any] = {"overrides": overrides or {}} | ({"based_on": based_on} if based_on else {})
    return make_plan(complete(merge(given, changes), ROOT))
