"""A cell's images: a WebDataset tar of uint8 batches, streamed in both directions.

`card.json` comes first, then for each batch `{first index:08d}` the members `images.npy`, uint8
(n, C, H, W), and `labels.npy`, int64 (n,).
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from .files import atomic


class ImageWriter:
    """Appends batches to the tar that :func:`write_images` opens."""

    def __init__(self, sink: wds.TarWriter):
        self._sink = sink
        self.count = 0

    def append(self, images: Tensor, labels: Tensor) -> None:
        """Append uint8 images (n, C, H, W) and their labels (n,)."""
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


def read_card(path: str | Path) -> dict[str, Any]:
    """The card alone.

    Raises:
        ValueError: the tar does not start with one.
    """
    with tarfile.open(path, "r:") as tar:
        first = tar.next()
        stream = tar.extractfile(first) if first is not None and first.name == "card.json" else None
        if stream is None:
            raise ValueError(f"{path}: does not start with card.json; make it with fewstep.sample")
        card: dict[str, Any] = json.load(stream)
    return card


def read_images(path: str | Path) -> Iterator[Tensor]:
    """Batches of uint8 images (n, C, H, W), in order, one in memory at a time."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.name.endswith(".images.npy"):
                stream = tar.extractfile(member)
                assert stream is not None
                yield torch.from_numpy(np.load(io.BytesIO(stream.read()), allow_pickle=False))


def to_uint8(images: Tensor, rule: str) -> Tensor:
    """Images in [-1, 1] as bytes: ``round`` to the nearest level, or ``truncate`` as FACM does.

    Raises:
        ValueError: an image holds NaN, which would silently become a colour.
    """
    if images.isnan().any():
        raise ValueError("an image holds NaN; did the training diverge?")
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return (scaled.round() if rule == "round" else scaled).to(torch.uint8)
