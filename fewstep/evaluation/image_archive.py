"""Archives of images: tars of samples, and npz files of published images. Only numpy is needed to read them.

A tar of samples is a WebDataset: `card.json`, then for each batch `{first index:08d}` the members
`images.npy`, uint8 (n, C, H, W), and `labels.npy`, int64 (n,), at last `sha256.json`, the checksums of all
members. Data that are not images are float32; their card says `uint8: none`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from ..common.array_files import read_npy_header
from ..common.files import atomic, atomic_folder, reading
from ..common.folders import visible_files
from ..common.tar_files import members

CHECKSUMS = "sha256.json"


def write_images(
    path: str | Path, card: dict[str, Any], batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write a tar of images (n, C, H, W), uint8 or float32, and their labels (n,), batch by batch."""
    checksums: dict[str, str] = {}
    first = 0
    with atomic(path) as temporary, tarfile.open(temporary, "w") as tar:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            checksums[name] = hashlib.sha256(content).hexdigest()

        add("card.json", json.dumps(card).encode())
        for images, labels in batches:
            for name, values in (("images", images), ("labels", labels)):
                content = io.BytesIO()
                np.save(content, values, allow_pickle=False)
                add(f"{first:08d}.{name}.npy", content.getvalue())
            first += len(images)
        add(CHECKSUMS, json.dumps(checksums).encode())


class Member(NamedTuple):
    """A file in the tar: its bytes are at ``offset``."""

    name: str
    offset: int
    size: int
    sha256: str

    def read(self, path: Path) -> bytes:
        """Its content in the tar ``path``.

        Raises:
            ValueError: it is not what was written.
        """
        with path.open("rb") as stream:
            stream.seek(self.offset)
            content = stream.read(self.size)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{path}: damaged: {self.name} is not that of its sha256; sample again")
        return content


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
    image_members: list[Member]
    """The images of each batch."""
    label_members: list[Member]

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def images(self, batch: int) -> np.ndarray:
        """Images (n, C, H, W) of a batch, given by its position."""
        return self._load(self.image_members[batch])

    def labels(self, batch: int) -> np.ndarray:
        """Labels (n,) of a batch, int64."""
        return self._load(self.label_members[batch])

    def _load(self, member: Member) -> np.ndarray:
        with reading(self.path, "a tar of images"):
            array: np.ndarray = np.load(io.BytesIO(member.read(self.path)), allow_pickle=False)
        return array


def open_images(path: str | Path) -> ImageArchive:
    """Read card and headers of a tar of samples; images and labels are verified when they are read.

    Raises:
        ValueError: not such a tar, or damaged; no images, or batches of another type or size than the first.
    """
    path = Path(path)
    with reading(path, "a tar of images, which fewstep.sample makes"), tarfile.open(path, "r:") as tar:
        return _open(path, tar)


def _open(path: Path, tar: tarfile.TarFile) -> ImageArchive:
    places = {member.name: member for member in members(tar, path.stat().st_size)}
    if not places or next(iter(places)) != "card.json":
        raise ValueError("does not start with card.json")
    *names, last = places
    if last != CHECKSUMS:
        raise ValueError(f"does not end with {CHECKSUMS}")
    checksums = json.loads(_stream(tar, places[CHECKSUMS]).read())
    if names != list(checksums):
        raise ValueError(f"its members are not those of its {CHECKSUMS}")
    card_member, *others = (
        Member(name, places[name].offset_data, places[name].size, checksums[name]) for name in names
    )
    card = json.loads(card_member.read(path))
    images = [member for member in others if member.name.endswith(".images.npy")]
    labels = [member for member in others if member.name.endswith(".labels.npy")]
    if not images:
        raise ValueError("holds no images")
    wanted = np.dtype(np.float32 if card.get("uint8") == "none" else np.uint8)
    shape: tuple[int, ...] = ()
    sizes = []
    for member in images:
        (count, *size), dtype = read_npy_header(_stream(tar, places[member.name]))
        shape = shape or tuple(size)
        if dtype != wanted or len(size) != 3 or tuple(size) != shape:
            found = f"{dtype} {(count, *size)}"
            raise ValueError(f"{member.name}: images are {found}, not {wanted} (n, C, H, W) of one size")
        sizes.append(count)
    return ImageArchive(path, card, shape, wanted, sizes, images, labels)


def _stream(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(member)
    if stream is None:
        raise ValueError(f"{member.name} is not a file")
    return stream


def write_npz(archive: ImageArchive, out: Path) -> None:
    """Write images as `arr_0`, uint8 (n, H, W, C), and labels as `arr_1`, int64 (n,), batch by batch."""
    channels, height, width = archive.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (archive.count, height, width, channels)}
    batches = range(len(archive.sizes))
    labels = np.concatenate([archive.labels(batch) for batch in batches])
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w") as made:
        with made.open("arr_0.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for batch in batches:
                stream.write(archive.images(batch).transpose(0, 2, 3, 1).tobytes())
        with made.open("arr_1.npy", "w") as stream:
            np.lib.format.write_array(stream, labels, allow_pickle=False)


def write_pngs(archive: ImageArchive, out: Path) -> None:
    """Write images as PNG files of a folder, numbered from 0; it appears with all of them.

    Raises:
        ValueError: the folder holds files already.
    """
    out = out.resolve()
    if any(visible_files(out)):
        raise ValueError(f"{out}: is not empty; name a new folder, or empty it")
    place = 0
    with atomic_folder(out) as temporary:
        for batch in range(len(archive.sizes)):
            for image in archive.images(batch).transpose(0, 2, 3, 1):
                pixels = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(pixels).save(temporary / f"{place:06d}.png")
                place += 1


def open_npz_images(path: Path, remedy: str = "") -> tuple[Callable[[range], np.ndarray], int]:
    """Reader of the images `arr_0` of an npz, uint8 (n, H, W, C) there, and their number.

    The reader takes a range of indices and returns uint8 (n, C, H, W), read in place: ADM's 10,000 images
    take 2 GB. It raises a ValueError where the file is damaged.

    Args:
        remedy: what to do where there are none, for the message.

    Raises:
        ValueError: no such array, or not of uint8 images.
    """
    with reading(path, "an npz file"):
        archive = zipfile.ZipFile(path)
    if "arr_0.npy" not in archive.namelist():
        names = ", ".join(sorted(archive.namelist()))
        raise ValueError(f"{path}: holds {names} and no images (arr_0){remedy}")
    with reading(path, "an npz file"):
        stream = archive.open("arr_0.npy")
        (count, *size), dtype = read_npy_header(stream)
    if dtype != np.uint8 or len(size) != 3:
        raise ValueError(f"{path}: arr_0 is {dtype} {(count, *size)}, not uint8 (n, H, W, C)")
    start, length = stream.tell(), int(np.prod(size))

    def read(indices: range) -> np.ndarray:
        with reading(path, "an npz file"):
            stream.seek(start + indices.start * length)
            content = stream.read(len(indices) * length)
        if len(content) < len(indices) * length:
            raise ValueError(f"{path}: arr_0 ends before its last image")
        return np.frombuffer(content, np.uint8).reshape(-1, *size).transpose(0, 3, 1, 2).copy()

    return read, count
