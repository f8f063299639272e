"""A cell's images: a WebDataset tar of uint8 batches, streamed in both directions.

`card.json` comes first, then for each batch `{first index:08d}` the members `images.npy`, uint8
(n, C, H, W), and `labels.npy`, int64 (n,). Data that are not images are float32; their card says
`uint8: none`.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from .common.files import atomic


class ImageWriter:
    """Appends batches to the tar that :func:`write_images` opens."""

    def __init__(self, sink: wds.TarWriter):
        self._sink = sink
        self.count = 0

    def append(self, images: Tensor, labels: Tensor) -> None:
        """Append a batch (n, C, H, W) as :func:`finished` returns it, and its labels (n,)."""
        key = f"{self.count:08d}"
        self._sink.write(
            {"__key__": key, "images.npy": images.cpu().numpy(), "labels.npy": labels.cpu().numpy()}
        )
        self.count += len(images)


@contextmanager
def write_images(path: str | Path, card: dict[str, Any]) -> Iterator[ImageWriter]:
    """Open a tar for writing; it gets its name only when the block succeeds."""
    with atomic(path) as temporary, wds.TarWriter(str(temporary), mtime=0) as sink:
        sink.write({"__key__": "card", "json": card})
        yield ImageWriter(sink)


@dataclass(frozen=True)
class ImageTar:
    """A tar of images, its headers read: batches come in any order, one in memory at a time."""

    path: Path
    card: dict[str, Any]
    shape: tuple[int, ...]
    """(C, H, W) of every image."""
    dtype: np.dtype
    """uint8, or float32 of data that are not images."""
    batches: list[tuple[int, int, int]]
    """Of each batch: byte offset, length in bytes, number of images."""

    @property
    def count(self) -> int:
        return sum(count for _, _, count in self.batches)

    def read(self, index: int) -> Tensor:
        """Batch number ``index``, (n, C, H, W)."""
        offset, length, _ = self.batches[index]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            content = stream.read(length)
        return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))


def open_images(path: str | Path) -> ImageTar:
    """Read the headers of a tar of images, and refuse what :func:`write_images` would not have written.

    Raises:
        ValueError: not such a tar, no images, or batches of another type or size than the first.
    """
    path = Path(path)
    shape: tuple[int, ...] | None = None
    batches = []
    try:
        with tarfile.open(path, "r:") as tar:
            card = _card(tar, path)
            wanted = np.dtype(np.float32 if card.get("uint8") == "none" else np.uint8)
            for member in tar:
                if not member.name.endswith(".images.npy"):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None
                np.lib.format.read_magic(stream)
                (count, *size), _, dtype = np.lib.format.read_array_header_1_0(stream)
                shape = shape or tuple(size)
                if dtype != wanted or len(size) != 3 or tuple(size) != shape:
                    found = f"{dtype} {(count, *size)}"
                    raise ValueError(
                        f"{path}: {member.name}: images are {found}, not {wanted} (n, C, H, W) of one size"
                    )
                batches.append((member.offset_data, member.size, count))
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a tar of images: {error}; make it with fewstep.sample") from None
    if shape is None:
        raise ValueError(f"{path}: holds no images; make it with fewstep.sample")
    return ImageTar(path, card, shape, wanted, batches)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card alone; errors as for `open_images`."""
    return open_images(path).card


def read_images(path: str | Path) -> Iterator[Tensor]:
    """Batches of images (n, C, H, W), in order, one in memory at a time."""
    images = open_images(path)
    return map(images.read, range(len(images.batches)))


def _card(tar: tarfile.TarFile, path: Path) -> dict[str, Any]:
    first = tar.next()
    stream = tar.extractfile(first) if first is not None and first.name == "card.json" else None
    if stream is None:
        raise ValueError(f"{path}: does not start with card.json; make it with fewstep.sample")
    card: dict[str, Any] = json.load(stream)
    return card


def finished(images: Tensor, rule: str) -> Tensor:
    """Images as they are stored and compared: bytes by ``rule``, or for ``none`` float32 as they are.

    Raises:
        ValueError: one of them holds NaN.
    """
    if rule != "none":
        return to_uint8(images, rule)
    if images.isnan().any():
        raise ValueError("a sample holds NaN; did the training diverge?")
    return images.float()


def to_uint8(images: Tensor, rule: str) -> Tensor:
    """Images in [-1, 1] as bytes: ``round`` to the nearest level, or ``truncate`` as FACM does.

    Raises:
        ValueError: an image holds NaN, which would silently become a colour.
    """
    if images.isnan().any():
        raise ValueError("an image holds NaN; did the training diverge?")
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return (scaled.round() if rule == "round" else scaled).to(torch.uint8)
