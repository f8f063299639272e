"""Archives of images: tars of samples, and npz files of published images. Only numpy is needed to read them.

A tar of samples is a WebDataset: `card.json`, then for each batch `{first index:08d}` the members
`images.npy`, uint8 (n, C, H, W), and `labels.npy`, int64 (n,). Data that are not images are float32; their
card says `uint8: none`.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.array_files import read_npy_header
from ..common.files import atomic


def write_images(
    path: str | Path, card: dict[str, Any], batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write a tar of images (n, C, H, W), uint8 or float32, and their labels (n,), batch by batch."""
    first = 0
    with atomic(path) as temporary, tarfile.open(temporary, "w") as tar:
        _add(tar, "card.json", json.dumps(card).encode())
        for images, labels in batches:
            for name, values in (("images", images), ("labels", labels)):
                content = io.BytesIO()
                np.save(content, values, allow_pickle=False)
                _add(tar, f"{first:08d}.{name}.npy", content.getvalue())
            first += len(images)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@dataclass(frozen=True)
class ImageArchive:
    """A tar of samples whose headers have been read: batches come in any order, one in memory at a time."""

    path: Path
    card: dict[str, Any]
    shape: tuple[int, ...]
    """(C, H, W) of every image."""
    dtype: np.dtype
    """uint8, or float32 of data that are not images."""
    sizes: list[int]
    """Images in each batch."""
    image_members: list[tuple[int, int]]
    """Byte offset and length of the images of each batch."""
    label_members: list[tuple[int, int]]

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def images(self, batch: int) -> np.ndarray:
        """Images (n, C, H, W) of a batch, given by its position."""
        return self._load(self.image_members[batch])

    def labels(self, batch: int) -> np.ndarray:
        """Labels (n,) of a batch, int64."""
        return self._load(self.label_members[batch])

    def _load(self, member: tuple[int, int]) -> np.ndarray:
        offset, length = member
        with self.path.open("rb") as stream:
            stream.seek(offset)
            content = io.BytesIO(stream.read(length))
        array: np.ndarray = np.load(content, allow_pickle=False)
        return array


def open_images(path: str | Path) -> ImageArchive:
    """Read the headers of a tar of samples, and refuse what :func:`write_images` would not have written.

    Raises:
        ValueError: not such a tar, no images, or batches of another type or size than the first.
    """
    path = Path(path)
    shape: tuple[int, ...] = ()
    sizes, images, labels = [], [], []
    try:
        with tarfile.open(path, "r:") as tar:
            card = _read_card(tar, path)
            wanted = np.dtype(np.float32 if card.get("uint8") == "none" else np.uint8)
            for member in tar:
                place = member.offset_data, member.size
                if member.name.endswith(".labels.npy"):
                    labels.append(place)
                elif member.name.endswith(".images.npy"):
                    stream = tar.extractfile(member)
                    assert stream is not None
                    (count, *size), dtype = read_npy_header(stream)
                    shape = shape or tuple(size)
                    if dtype != wanted or len(size) != 3 or tuple(size) != shape:
                        found = f"{dtype} {(count, *size)}"
                        raise ValueError(
                            f"{path}: {member.name}: images are {found}, not {wanted} "
                            "(n, C, H, W) of one size"
                        )
                    sizes.append(count)
                    images.append(place)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a tar of images: {error}; make it with fewstep.sample") from None
    if not images:
        raise ValueError(f"{path}: holds no images; make it with fewstep.sample")
    return ImageArchive(path, card, shape, wanted, sizes, images, labels)


def _read_card(tar: tarfile.TarFile, path: Path) -> dict[str, Any]:
    first = tar.next()
    stream = tar.extractfile(first) if first is not None and first.name == "card.json" else None
    if stream is None:
        raise ValueError(f"{path}: does not start with card.json; make it with fewstep.sample")
    card: dict[str, Any] = json.load(stream)
    return card


def open_npz_images(path: Path) -> tuple[Callable[[range], np.ndarray], int]:
    """Reader of the images `arr_0` of an npz, uint8 (n, H, W, C) there, and their number.

    The reader takes a range of indices and returns uint8 (n, C, H, W), read in place: ADM's 10,000 images
    take 2 GB.

    Raises:
        ValueError: no such array, or not of uint8 images.
    """
    archive = zipfile.ZipFile(path)
    if "arr_0.npy" not in archive.namelist():
        names = ", ".join(sorted(archive.namelist()))
        raise ValueError(
            f"{path}: holds {names} and no images (arr_0); take kid, precision and recall out of "
            f"the protocol's metrics, or name another reference"
        )
    stream = archive.open("arr_0.npy")
    (count, *size), dtype = read_npy_header(stream)
    if dtype != np.uint8 or len(size) != 3:
        raise ValueError(f"{path}: arr_0 is {dtype} {(count, *size)}, not uint8 (n, H, W, C)")
    start, length = stream.tell(), int(np.prod(size))

    def read(indices: range) -> np.ndarray:
        stream.seek(start + indices.start * length)
        flat = np.frombuffer(stream.read(len(indices) * length), np.uint8)
        return flat.reshape(-1, *size).transpose(0, 3, 1, 2).copy()

    return read, count
