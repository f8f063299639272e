"""Data sets as indexed images, read from the files of a fetched asset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..config.settings import Dataset
from .archives import ClassTars, WebDatasetTars
from .classes import check_folders
from .images import SUFFIXES, ImageFile, decode_files
from .parquet import Parquet
from .records import Record


class Source(Protocol):
    """Images, or other data in their place, with labels in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [-1, 1] and labels int64 (n,) of positions start..stop-1.

        Points have no bounds.
        """
        ...


class Files(Protocol):
    """Image files with labels in a fixed order."""

    def __len__(self) -> int: ...

    def files(self, start: int, stop: int) -> list[ImageFile]:
        """The files of positions start..stop-1."""
        ...


def open_source(dataset: Dataset, record: Record) -> Source:
    """The images of ``dataset`` in the asset that ``record`` describes.

    Raises:
        ConfigError: missing or damaged files, another number of images or classes than ``dataset``
            says, or other classes than its ``class_ids``.
    """
    if dataset.format != "moons" and dataset.channels not in (1, 3):
        raise ConfigError(f"{record.path}: dataset.channels: must be 1 or 3, not {dataset.channels}")
    kinds: dict[str, Callable[[Dataset, Record], Files]] = {
        "imagefolder": ImageFolder,
        "parquet": Parquet,
        "tars": ClassTars,
        "webdataset": WebDatasetTars,
    }
    if dataset.format == "digits":
        source: Source = Digits(dataset, record)
    elif dataset.format == "moons":
        source = Moons(dataset, record)
    elif dataset.format in kinds:
        source = Decoded(dataset, kinds[dataset.format](dataset, record))
    else:
        raise ConfigError(f"{record.path}: dataset.format: {dataset.format} has no images")
    agree(record, "images", len(source), dataset.images)
    return source


def agree(record: Record, key: str, found: int, expected: int) -> None:
    """Refuse a number that is not the configured one."""
    if found != expected:
        raise ConfigError(f"{record.path}: dataset.{key}: found {found}, the configuration says {expected}")


class Digits:
    """scikit-learn's digits: values 0..16 become v / 8 - 1."""

    def __init__(self, dataset: Dataset, record: Record) -> None:
        with np.load(record.file("digits.npz"), allow_pickle=False) as content:
            self._images = torch.from_numpy(content["images"])[:, None]
            self._labels = torch.from_numpy(content["labels"])
        agree(record, "classes", len(self._labels.unique()), dataset.classes)
        agree(record, "channels", self._images.shape[1], dataset.channels)
        agree(record, "resolution", self._images.shape[2], dataset.resolution)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self._images[start:stop].float().div_(8).sub_(1), self._labels[start:stop].clone()


class Moons:
    """Two moons as "images" (2, 1, 1) of one class, with the law's own mean 0 and variance 1 along each axis.

    The half circles are (cos a, sin a) and (1 - cos a, 1/2 - sin a), a uniform on [0, pi], with noise of
    deviation e: means 1/2 and 1/4, variances 3/4 + e^2 and 9/16 - 1/pi + e^2. Not those of the draw, so
    that two draws share their coordinates.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        with np.load(record.file("moons.npz"), allow_pickle=False) as content:
            points, noise = content["points"], float(content["noise"])
        variance = np.array([3 / 4, 9 / 16 - 1 / np.pi]) + noise**2
        standard = (points - [1 / 2, 1 / 4]) / np.sqrt(variance)
        self._points = torch.from_numpy(standard).float()[:, :, None, None]
        agree(record, "classes", 1, dataset.classes)
        agree(record, "channels", 2, dataset.channels)
        agree(record, "resolution", 1, dataset.resolution)

    def __len__(self) -> int:
        return len(self._points)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        points = self._points[start:stop].clone()
        return points, torch.zeros(len(points), dtype=torch.int64)


class Decoded:
    """Image files, decoded."""

    def __init__(self, dataset: Dataset, files: Files) -> None:
        self._dataset = dataset
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return decode_files(self._files.files(start, stop), self._dataset)


class ImageFolder:
    """One folder per class; classes are numbered in the sorted order of the folders' paths.

    The recorded files count, not what the folder holds today.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
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
        check_folders(record.path, dataset, folders)

    def __len__(self) -> int:
        return len(self._images)

    def files(self, start: int, stop: int) -> list[ImageFile]:
        return [
            ImageFile((path := self._record.locate(file)).read_bytes(), self._classes[folder], str(path))
            for folder, _, file in self._images[start:stop]
        ]
