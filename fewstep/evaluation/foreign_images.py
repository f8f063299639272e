"""Images from elsewhere: a folder of PNG or JPEG files, an npz as ADM's evaluator reads it, a WebDataset tar.

Their order is that of the files' names, of the array, or of the tar. Nothing is converted: an image of
another size or mode is refused.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..common.files import first_line, reading, sha256
from ..common.folders import visible_files
from ..common.image_folders import SUFFIXES
from ..common.tar_files import members
from ..config import ConfigError
from ..data.image_files import FORMATS, check_size
from .distributed_map import from_main, is_main
from .image_archive import open_npz_images

BATCH = 250
"""Images that are read at once."""
MODES = {1: "L", 3: "RGB"}
"""Channels -> Pillow's mode."""
PNG_BITS = 24
"""Place of the byte of a PNG that says how many bits a channel has."""


@dataclass(frozen=True)
class ForeignImages:
    """Images whose making is not known here; in place of an `ImageArchive`."""

    path: Path
    card: dict[str, Any]
    """Where they came from: path, kind, count, image (C, H, W), sha256 over names and contents."""
    shape: tuple[int, ...]
    count: int
    prompts: int
    """Image i shows prompt i modulo this number."""
    read: Callable[[range], np.ndarray]

    @property
    def sizes(self) -> list[int]:
        return [min(BATCH, self.count - first) for first in range(0, self.count, BATCH)]

    def images(self, batch: int) -> np.ndarray:
        """Images uint8 (n, C, H, W) of a batch, given by its position."""
        return self.read(self._indices(batch))

    def labels(self, batch: int) -> np.ndarray:
        """Prompts that the images of a batch show, int64 (n,)."""
        return np.array(self._indices(batch)) % self.prompts

    def _indices(self, batch: int) -> range:
        return range(batch * BATCH, min((batch + 1) * BATCH, self.count))


def open_foreign(path: Path, shape: Sequence[int], count: int, prompts: int = 1) -> ForeignImages:
    """The images of a folder, npz or tar. Their files are hashed by the main process alone.

    Args:
        shape: (C, H, W) of the protocol's images.
        count: number of the protocol's images.
        prompts: number of its prompts, if it has any.

    Raises:
        ConfigError: in one line: no images, another number or size of them, or a file that is damaged.
    """
    shape = tuple(shape)
    if path.is_dir():
        kind, found, read, checksum = "folder", *_folder(path, shape)
    elif path.suffix == ".npz":
        kind, found, read, checksum = "npz", *_npz(path, shape)
    elif path.suffix == ".tar":
        kind, found, read, checksum = "webdataset", *_tar(path, shape)
    else:
        what = "is no folder, .npz or .tar" if path.exists() else "no such file or folder"
        raise ConfigError(f"{path}: {what}")
    if found != count:
        raise ConfigError(
            f"{path}: {found} images, but the protocol wants {count}; give as many, or a preset (--config) "
            f"whose protocol says images: {found}"
        )
    digest = from_main(checksum() if is_main() else "")
    card = {"path": str(path), "kind": kind, "count": found, "image": list(shape), "sha256": digest}
    return ForeignImages(path, card, shape, found, prompts, read)


Found = tuple[int, Callable[[range], np.ndarray], Callable[[], str]]
"""Number of images, their reader, and what hashes them."""


def _folder(path: Path, shape: tuple[int, ...]) -> Found:
    names = [name for name in visible_files(path) if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise ConfigError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    for name in names:
        check_size(path / name, (path / name).stat().st_size)

    def checksum() -> str:
        total = hashlib.sha256()
        for name in names:
            total.update(f"{name}\0{sha256(path / name)}\n".encode())
        return total.hexdigest()

    def read(indices: range) -> np.ndarray:
        files = ((path / names[i], (path / names[i]).read_bytes()) for i in indices)
        return np.stack([decoded(content, shape, str(file)) for file, content in files])

    return len(names), read, checksum


def _npz(path: Path, shape: tuple[int, ...]) -> Found:
    read, count = open_npz_images(path)
    if count and (found := read(range(1)).shape[1:]) != shape:
        raise ConfigError(f"{path}: images are {found}, but the protocol's are {shape}")
    return count, read, partial(sha256, path)


def _tar(path: Path, shape: tuple[int, ...]) -> Found:
    with reading(path, "a tar of images"), tarfile.open(path, "r:") as tar:
        places = [
            (member.name, member.offset_data, member.size)
            for member in members(tar, path.stat().st_size)
            if member.isfile() and PurePosixPath(member.name).suffix.lower() in SUFFIXES
        ]
    if not places:
        raise ConfigError(f"{path}: holds no images ({', '.join(sorted(SUFFIXES))})")
    for name, _, size in places:
        check_size(f"{path}: {name}", size)

    def contents(indices: range) -> Iterator[tuple[str, bytes]]:
        with path.open("rb") as stream:
            for name, offset, size in (places[i] for i in indices):
                stream.seek(offset)
                yield f"{path}: {name}", stream.read(size)

    def read(indices: range) -> np.ndarray:
        return np.stack([decoded(content, shape, where) for where, content in contents(indices)])

    return len(places), read, partial(sha256, path)


def decoded(content: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    """The image in a file's content, uint8 (C, H, W).

    Raises:
        ConfigError: naming ``where``: damaged, of another size, or of another mode.
    """
    channels, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.size != (width, height):
                size = f"{image.width}x{image.height}, not {width}x{height}"
                raise ValueError(f"is {size}, and nothing is resized here")
            if image.mode != MODES.get(channels):
                raise ValueError(f"has mode {image.mode}, not {MODES.get(channels)}; convert it first")
            if image.format == "PNG" and content[PNG_BITS] > 8:  # which Pillow would cut to 8
                raise ValueError(f"has {content[PNG_BITS]} bits in a channel, not 8; convert it first")
            pixels = np.asarray(image)
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
