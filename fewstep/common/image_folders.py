"""What a folder of images holds: its layout, classes and number of images, without decoding any."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any

from .files import first_line, write_text
from .folders import visible_files

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Of the images that are read, in lower case."""
SPLITS = {"train", "test", "val", "valid", "validation", "dev"}
"""Folders, and first words of Parquet files, that divide a data set; `train` alone is taken."""
MEASURED = 64
"""Images, evenly spread, whose sizes are looked at."""
SLOW = 1.0
"""Seconds from which on the result is kept in a file."""


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images as it lies there."""

    format: str
    """imagefolder or parquet."""
    prefix: str
    """What the names of its files begin with that count; empty: all."""
    images: int
    classes: int
    names: list[str]
    """Of the classes in the order of their labels; empty where nothing names them."""
    sizes: list[list[int]]
    """(width, height) of the smallest and of the largest image that was looked at."""
    digest: str
    """SHA-256 over names and sizes in bytes of all files."""


def look_into(
    folder: Path, columns: Sequence[str], kept: Path | None = None, slow: float = SLOW
) -> ImageFolder:
    """Find out what a folder holds: images (one class), folders of images (a class each), or Parquet files.

    Args:
        columns: of Parquet files, with images and labels.
        kept: file for a result that took at least ``slow`` seconds; it counts while no folder has changed.

    Raises:
        ValueError: there is no such folder, or nothing in it that can be counted: why, and what to do.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    if kept is not None and (found := _kept(folder, kept)) is not None:
        return found
    start = time.monotonic()
    found = _look(folder, columns)
    if kept is not None and time.monotonic() - start >= slow:
        with suppress(OSError):
            content = {"folders": _times(folder), "found": asdict(found)}
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps(content) + "\n")
    return found


def _times(folder: Path) -> dict[str, int]:
    """Time of the last change of every folder: a file that comes, goes or is renamed changes its own."""
    below = {str(PurePosixPath(name).parent) for name in visible_files(folder)}
    every = {".", *below, *(str(parent) for name in below for parent in PurePosixPath(name).parents)}
    return {name: (folder / name).stat().st_mtime_ns for name in sorted(every)}


def _kept(folder: Path, kept: Path) -> ImageFolder | None:
    """The result of an earlier look, if no folder has changed since."""
    try:
        content = json.loads(kept.read_text(encoding="utf-8"))
        same = all((folder / name).stat().st_mtime_ns == then for name, then in content["folders"].items())
        return ImageFolder(**content["found"]) if same else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _look(folder: Path, columns: Sequence[str]) -> ImageFolder:
    files = list(visible_files(folder))
    images = [name for name in files if name.lower().endswith(SUFFIXES)]
    tables = [name for name in files if name.endswith(".parquet")]
    if not images and not tables:
        kinds = Counter(PurePosixPath(name).suffix or "files without an ending" for name in files)
        if not kinds:
            raise ValueError(f"{folder} is empty; put images or .parquet files into it")
        has = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(5))
        raise ValueError(
            f"{folder} has no images ({', '.join(SUFFIXES)}) and no .parquet files, but {has}; of tar files, "
            "give format, images, classes and resolution of the data set"
        )
    if images and tables:
        raise ValueError(
            f"{folder} has {len(images)} images beside {len(tables)} Parquet files; keep one of both there"
        )
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"{(folder / name).stat().st_size} {name}\n".encode())
    facts = _of_images(folder, images) if images else _of_tables(folder, tables, columns)
    return ImageFolder(**facts, digest=digest.hexdigest())


def _of_images(folder: Path, images: list[str]) -> dict[str, Any]:
    tops = {PurePosixPath(name).parts[0] for name in images}
    prefix = "train/" if "train" in tops and tops <= SPLITS else ""
    chosen = [name.removeprefix(prefix) for name in images if name.startswith(prefix)]
    folders = sorted({str(PurePosixPath(name).parent) for name in chosen})
    if folders == ["."]:
        names = [folder.resolve().name]
    elif "." in folders:
        alone = next(name for name in chosen if "/" not in name)
        raise ValueError(
            f"{folder / prefix} has images ({alone}) beside folders of images ({folders[1]}); either all "
            "images lie in it, as one class, or a folder for each class"
        )
    else:
        names = folders
    step = max(1, len(chosen) // MEASURED)
    paths = [folder / f"{prefix}{name}" for name in chosen[::step]]
    return {
        "format": "imagefolder",
        "prefix": prefix,
        "images": len(chosen),
        "classes": len(names),
        "names": names,
        "sizes": _extremes([_size(path, str(path)) for path in paths]),
    }


def _of_tables(folder: Path, tables: list[str], columns: Sequence[str]) -> dict[str, Any]:
    """Rows of Parquet files by their footers, and the classes that the hub's metadata or the labels name."""
    prefix = _training_prefix(folder, tables)
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{folder} has Parquet files, which pyarrow counts: install it, or give format, images, classes "
            "and resolution of the data set"
        ) from None
    rows, labels = 0, 0
    names: list[str] = []
    cells: list[bytes] = []
    for name in (name for name in tables if name.startswith(prefix)):
        try:
            with parquet.ParquetFile(folder / name) as file:
                rows += file.metadata.num_rows
                names = names or _label_names(file.schema_arrow.metadata or {}, columns[1])
                if not cells and rows:
                    first = next(file.iter_batches(MEASURED, columns=[f"{columns[0]}.bytes"]))
                    cells = [cell["bytes"] for cell in first.column(columns[0]).to_pylist()]
                if not names:
                    found = file.read(columns=[columns[1]]).column(0).to_pylist()
                    labels = max(labels, 1 + max(found, default=-1))
        except Exception as error:
            raise ValueError(
                f"{folder / name}: no images and labels in its columns {columns[0]} and {columns[1]} "
                f"({first_line(error)}); name them in `columns` of the data set"
            ) from None
    if not rows:
        raise ValueError(f"{folder} has Parquet files without a row")
    return {
        "format": "parquet",
        "prefix": prefix,
        "images": rows,
        "classes": len(names) or labels,
        "names": names,
        "sizes": _extremes([_size(BytesIO(cell), f"an image in {folder}") for cell in cells]),
    }


def _training_prefix(folder: Path, tables: list[str]) -> str:
    """What the names of the training's files begin with, where others lie beside them."""
    divided = {PurePosixPath(name).name.split("-")[0].split(".")[0] for name in tables}
    if "train" not in divided or divided == {"train"} or not divided <= SPLITS:
        return ""
    found = {
        name[: name.rindex("train") + 5] for name in tables if PurePosixPath(name).name.startswith("train")
    }
    if len(found) > 1:
        raise ValueError(f"{folder} has training files in several folders; give the data set's prefix")
    return found.pop()


def _label_names(metadata: Mapping[bytes, bytes], column: str) -> list[str]:
    """Names of the classes in what the package `datasets` writes into a file; empty if there are none."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][column]["names"]
    except (KeyError, ValueError, TypeError):
        return []
    return [str(name) for name in names]


def _size(file: Path | IO[bytes], where: str) -> tuple[int, int]:
    """Width and height, of which only the file's header is read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size
    except OSError:
        raise ValueError(f"{where} is not an image") from None


def _extremes(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The smallest and the largest; of equal areas, the lower and the wider."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return [list(ordered[0]), list(ordered[-1])]
