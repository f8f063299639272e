"""Images inside tar files, found through an index of offsets."""

from __future__ import annotations

import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..common.files import atomic
from ..config import ConfigError
from ..config.settings import Dataset
from .classes import WORDNET, check_folders, check_label
from .images import SUFFIXES, ImageFile
from .records import Record


class Place(NamedTuple):
    """Where the bytes of an image lie, and of which class it is."""

    tar: int
    offset: int
    size: int
    label: int


class _Tars(ABC):
    """All headers are read once and kept beside the record, in NAME.FORMAT.npz (a cache: delete it freely).

    WebDataset itself can only stream, and shards need ranges.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        names = sorted(file.name for file in record.body.files if file.name.endswith(".tar"))
        if not names:
            raise ConfigError(f"{record.path}: dataset.format: {dataset.format}, but there is no .tar file")
        self._paths = [record.file(name) for name in names]
        self._dataset = dataset
        cache = record.path.with_suffix(f".{dataset.format}.npz")
        kept = _load(cache, record.digest)
        if kept is None:
            places, folders = self._scan()
            kept = np.array(places, np.int64).reshape(-1, len(Place._fields)), folders
            with suppress(OSError), atomic(cache) as temporary:
                np.savez(temporary, places=kept[0], folders=np.array(folders, str), digest=record.digest)
        self._places, self._folders = kept

    @abstractmethod
    def _scan(self) -> tuple[list[Place], list[str]]:
        """Places of all images in order, and the names of the classes if the tars know them."""

    def __len__(self) -> int:
        return len(self._places)

    def files(self, start: int, stop: int) -> list[ImageFile]:
        result = []
        for place in (Place(*row) for row in self._places[start:stop].tolist()):
            path = self._paths[place.tar]
            with path.open("rb") as stream:
                stream.seek(place.offset)
                content = stream.read(place.size)
            result.append(ImageFile(content, place.label, f"{path} at byte {place.offset}"))
        return result


def _load(cache: Path, digest: str) -> tuple[np.ndarray, list[str]] | None:
    if not cache.is_file():
        return None
    with np.load(cache, allow_pickle=False) as content:
        if str(content["digest"]) != digest:
            return None
        return content["places"], content["folders"].tolist()


class ClassTars(_Tars):
    """ILSVRC2012_img_train.tar, a tar of one tar per class, or the tars of the classes themselves.

    Classes are numbered in the sorted order of their tars' names, and images ordered by class and
    name: the order of the unpacked folders.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset, record)
        check_folders(record.path, dataset, self._folders)

    def _scan(self) -> tuple[list[Place], list[str]]:
        found = []
        for number, path in enumerate(self._paths):
            with _opened(path) as tar:
                for member in tqdm(tar, desc=f"reading headers of {path.name}", mininterval=1.0):
                    if member.isfile() and member.name.endswith(".tar"):
                        with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                            found += _class(number, member.offset_data, member.name, inner)
                    else:
                        found += _class(number, 0, path.name, [member])
        found.sort(key=lambda image: image[:2])
        folders = sorted({folder for folder, _, _ in found})
        labels = {folder: label for label, folder in enumerate(folders)}
        return [place._replace(label=labels[folder]) for folder, _, place in found], folders


def _class(
    tar: int, base: int, name: str, members: Iterable[tarfile.TarInfo]
) -> Iterator[tuple[str, str, Place]]:
    """Class, name and place (without a label yet) of the images in the tar ``name`` of one class."""
    for member in members:
        path = PurePosixPath(member.name)
        if member.isfile() and path.suffix.lower() in SUFFIXES:
            yield PurePosixPath(name).stem, path.name, Place(tar, base + member.offset_data, member.size, -1)


class WebDatasetTars(_Tars):
    """WebDataset tar files of images (``KEY.jpg``) and labels (``KEY.cls``, an integer as text).

    Tars are taken in sorted order, samples in the order of their images inside. Where a sample's name tells
    its class (n01440764_10026), the label must be that class's number.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset, record)
        found = len(np.unique(self._places[:, Place._fields.index("label")]))
        if found != dataset.classes:
            raise ConfigError(
                f"{record.path}: dataset.classes: found {found}, the configuration says {dataset.classes}"
            )

    def _scan(self) -> tuple[list[Place], list[str]]:
        return [
            place
            for number, path in enumerate(self._paths)
            for place in _samples(number, path, self._dataset)
        ], []


def _samples(number: int, path: Path, dataset: Dataset) -> list[Place]:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with _opened(path) as tar:
        for member in tar:
            base = member.name.rpartition("/")[2]
            key = member.name[: len(member.name) - len(base)] + base.partition(".")[0]
            kind = base.partition(".")[2].lower()
            if not member.isfile():
                continue
            if "." + kind in SUFFIXES:
                images[key] = member.offset_data, member.size
            elif kind == "cls":
                content = tar.extractfile(member)
                text = content.read() if content else b""
                if not text.strip().isdigit() or int(text) >= dataset.classes:
                    raise ConfigError(
                        f"{path}: {member.name}: {text[:20]!r} is no label below {dataset.classes}"
                    )
                folder = WORDNET.search(member.name)
                labels[key] = check_label(f"{path}: {member.name}", dataset, int(text), folder and folder[1])
    if missing := images.keys() ^ labels.keys():
        raise ConfigError(f"{path}: sample {min(missing)!r} has not both an image and a .cls label")
    return [Place(number, *place, labels[key]) for key, place in images.items()]


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{path}: not a whole and uncompressed tar file: {error}") from None
