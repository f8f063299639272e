"""Data sets as indexed images, read from the files of a fetched asset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..config.settings import Dataset
from .images import read_image
from .records import Record, read_record

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class Source(Protocol):
    """Images with labels in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [-1, 1] and labels int64 (n,) of positions start..stop-1."""
        ...


def open_source(dataset: Dataset, record: str | Path) -> Source:
    """The images of ``dataset`` in the asset that the record file describes.

    Raises:
        ConfigError: a format that cannot be read, missing files, or another number of images or
            classes than ``dataset`` says.
    """
    if dataset.format == "parquet":
        raise ConfigError(
            f"{record}: dataset.format: parquet is not supported yet; unpack the images into class "
            f"folders (imagefolder) or tar files with .jpg and .cls members (webdataset)"
        )
    if dataset.channels not in (1, 3):
        raise ConfigError(f"{record}: dataset.channels: must be 1 or 3, not {dataset.channels}")
    kinds: dict[str, Callable[[Dataset, Record], Source]] = {
        "digits": Digits,
        "imagefolder": ImageFolder,
        "webdataset": Tars,
    }
    source = kinds[dataset.format](dataset, read_record(record))
    _agree(record, "images", len(source), dataset.images)
    return source


def _agree(record: str | Path, key: str, found: int, expected: int) -> None:
    if found != expected:
        raise ConfigError(f"{record}: dataset.{key}: found {found}, the configuration says {expected}")


class Digits:
    """scikit-learn's digits: values 0..16 become v / 8 - 1."""

    def __init__(self, dataset: Dataset, record: Record) -> None:
        with np.load(record.file("digits.npz"), allow_pickle=False) as content:
            self._images = torch.from_numpy(content["images"])[:, None]
            self._labels = torch.from_numpy(content["labels"])
        _agree(record.path, "classes", len(self._labels.unique()), dataset.classes)
        _agree(record.path, "channels", self._images.shape[1], dataset.channels)
        _agree(record.path, "resolution", self._images.shape[2], dataset.resolution)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self._images[start:stop].float().div_(8).sub_(1), self._labels[start:stop].clone()


class ImageFolder:
    """One folder per class; classes are numbered in the sorted order of the folders' paths.

    The recorded files count, not what the folder holds today.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        self._dataset = dataset
        self._record = record
        named = [(PurePosixPath(file.name), file) for file in record.body.files]
        images = [
            (str(path.parent), path.name, file)
            for path, file in named
            if path.suffix.lower() in SUFFIXES and str(path.parent) != "."
        ]
        self._images = sorted(images, key=lambda image: image[:2])
        folders = sorted({folder for folder, _, _ in self._images})
        self._classes = {folder: number for number, folder in enumerate(folders)}
        _agree(record.path, "classes", len(folders), dataset.classes)

    def __len__(self) -> int:
        return len(self._images)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        chosen = self._images[start:stop]
        images = []
        for _, _, file in chosen:
            path = self._record.locate(file)
            with path.open("rb") as stream:
                images.append(_decode(stream, str(path), self._dataset))
        labels = [self._classes[folder] for folder, _, _ in chosen]
        return torch.stack(images), torch.tensor(labels)


class Tars:
    """WebDataset tar files of images (``KEY.jpg``) and labels (``KEY.cls``, an integer as text).

    Tars are taken in sorted order, samples in the order of their images inside. All headers are
    read once at opening; WebDataset itself can only stream, and shards need ranges.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        self._dataset = dataset
        names = sorted(file.name for file in record.body.files if file.name.endswith(".tar"))
        if not names:
            raise ConfigError(f"{record.path}: dataset.format: webdataset, but the asset has no .tar file")
        self._paths = [record.file(name) for name in names]
        self._samples: list[tuple[int, int, int, int]] = []  # tar, offset, size, label
        for number, path in enumerate(self._paths):
            self._samples.extend((number, *sample) for sample in _scan(path, dataset.classes))
        labels = {sample[3] for sample in self._samples}
        _agree(record.path, "classes", len(labels), dataset.classes)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        chosen = self._samples[start:stop]
        images = []
        for number, offset, size, _ in chosen:
            with self._paths[number].open("rb") as stream:
                stream.seek(offset)
                content = io.BytesIO(stream.read(size))
            images.append(_decode(content, f"{self._paths[number]} at byte {offset}", self._dataset))
        return torch.stack(images), torch.tensor([sample[3] for sample in chosen])


def _scan(path: Path, classes: int) -> list[tuple[int, int, int]]:
    """Offset, size and label of every image of a tar."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            base = member.name.rpartition("/")[2]
            key = member.name[: len(member.name) - len(base)] + base.partition(".")[0]
            if not member.isfile():
                continue
            if "." + base.partition(".")[2].lower() in SUFFIXES:
                images[key] = member.offset_data, member.size
            elif base.partition(".")[2] == "cls":
                content = tar.extractfile(member)
                text = content.read() if content else b""
                if not text.strip().isdigit() or int(text) >= classes:
                    raise ConfigError(f"{path}: {member.name}: {text[:20]!r} is no label below {classes}")
                labels[key] = int(text)
    if missing := images.keys() ^ labels.keys():
        raise ConfigError(f"{path}: sample {min(missing)!r} has not both an image and a .cls label")
    return [(*place, labels[key]) for key, place in images.items()]


def _decode(stream: io.BufferedReader | io.BytesIO, where: str, dataset: Dataset) -> Tensor:
    try:
        return read_image(stream, dataset.channels, dataset.resolution, dataset.crop)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None
