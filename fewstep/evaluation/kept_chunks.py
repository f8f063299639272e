"""An archive of images that is made in chunks, by all processes, and goes on where it was stopped.

Finished chunks are kept beside the archive until it is written.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .distributed_map import from_main, is_main, own_share, progress, wait_for_all
from .image_archive import open_images, write_images
from .quantization import refuse_nan

AHEAD = 2
"""Chunks that may wait for being written while another is made on a GPU."""


def write_in_chunks(
    out: Path,
    owner: Mapping[str, Any],
    card: dict[str, Any],
    labels: Tensor,
    rows: int,
    make: Callable[[range], tuple[Tensor, Tensor]],
    device: torch.device,
) -> None:
    """Write an archive of images.

    Args:
        owner: all that the images depend on.
        card: of the archive.
        labels: of all images, int64 (N,).
        rows: images in a chunk.
        make: the images (n, C, H, W) of a chunk, as bytes or float32 data, and whether one held NaN.
        device: that they are made on.

    Raises:
        ValueError: an image held NaN.
    """
    kept = KeptChunks(out, owner)
    count = len(labels)
    chunks = [range(first, min(first + rows, count)) for first in range(0, count, rows)]
    missing = from_main(kept.missing(chunks) if is_main() else [])
    with ChunkWriter(kept, thread=device.type == "cuda") as writer:
        share = own_share(missing)
        for indices in progress(share, len(share)):
            writer.write(indices, *make(indices))
    wait_for_all()
    if not is_main():
        return
    parts = zip(map(kept.read, chunks), labels.split(rows), strict=True)
    write_images(out, card, ((images, part.numpy()) for images, part in parts))
    shutil.rmtree(kept.folder)


class KeptChunks:
    """Finished chunks of an archive that is being made, in a folder beside it.

    Args:
        out: the archive.
        owner: all that the images depend on; chunks of another owner are removed.
    """

    def __init__(self, out: Path, owner: Mapping[str, Any]) -> None:
        text = json.dumps(owner, sort_keys=True)
        self.folder = out.with_name(f"{out.stem}.chunks-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        if is_main():
            for other in out.parent.glob(f"{glob.escape(out.stem)}.chunks-*"):
                if other != self.folder:
                    print(f"{other}: images of another model, spec or code discarded")
                    shutil.rmtree(other)
            self.folder.mkdir(parents=True, exist_ok=True)

    def missing(self, chunks: Sequence[range]) -> list[range]:
        """Chunks that are not there, or damaged."""
        return [indices for indices in chunks if not self._is_whole(indices)]

    def _is_whole(self, indices: range) -> bool:
        if not self._path(indices).exists():
            return False
        try:
            self.read(indices)
        except ValueError as error:
            print(f"{error}: made again")
            return False
        return True

    def read(self, indices: range) -> np.ndarray:
        """The images (n, C, H, W) of a chunk.

        Raises:
            ValueError: the file is damaged.
        """
        return open_images(self._path(indices)).images(0)

    def write(self, indices: range, images: np.ndarray) -> None:
        """Keep the images of a chunk."""
        card = {"uint8": "none" if images.dtype == np.float32 else "bytes"}
        write_images(self._path(indices), card, [(images, np.array(indices))])

    def _path(self, indices: range) -> Path:
        return self.folder / f"{indices.start:08d}.tar"


class ChunkWriter:
    """Writes chunks, with ``thread`` while the caller makes the next one; all are there when it is left."""

    def __init__(self, kept: KeptChunks, thread: bool) -> None:
        self._kept = kept
        self._pool = ThreadPoolExecutor(1) if thread else None
        self._writing: deque[Future[None]] = deque()

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)
        if error is None:
            self._wait(0)

    def write(self, indices: range, images: Tensor, nan: Tensor) -> None:
        """Write the images (n, C, H, W) of a chunk.

        Args:
            images: bytes or float32 data, on any device.
            nan: bool, whether an image held NaN before it was bytes.

        Raises:
            ValueError: there was NaN, in this chunk or one that was still being written.
        """
        copied = None
        if images.is_cuda:  # to pinned memory
            images, nan = (values.to("cpu", non_blocking=True) for values in (images, nan))
            copied = torch.cuda.Event()
            copied.record()
        if self._pool is None:
            self._finish(indices, images, nan, copied)
            return
        self._wait(AHEAD - 1)
        self._writing.append(self._pool.submit(self._finish, indices, images, nan, copied))

    def _wait(self, most: int) -> None:
        """Until at most so many chunks are still to be written."""
        while len(self._writing) > most:
            self._writing.popleft().result()

    def _finish(self, indices: range, images: Tensor, nan: Tensor, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        refuse_nan(nan)
        self._kept.write(indices, images.numpy())
