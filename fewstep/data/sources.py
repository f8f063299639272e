"""Data sets as indexed images or latents, read from the files of a fetched asset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..common.array_files import open_npz
from ..common.image_folders import SUFFIXES
from ..common.tensor_files import open_safetensors
from ..config import ConfigError
from ..config.settings import Dataset
from . import moons, scenes
from .archives import CaptionedTars, ClassTars, ParquetImages, WebDatasetTars
from .asset_files import Record
from .image_files import ImageFile, ImageFiles, check_folders, check_label, check_number, check_size

VIEWS = ("latents", "latents_flip")
"""Tensors of latents that others encoded: of the images, and of the mirrored ones."""


class DataSource(Protocol):
    """Images, or other data in their place, with labels in a fixed order."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [-1, 1] and labels int64 (n,) of positions start..stop-1.

        Points have no bounds.
        """
        ...

    def labels(self, start: int, stop: int) -> list[int]:
        """Labels alone of positions start..stop-1; no image is decoded."""
        ...


def open_source(dataset: Dataset, record: Record) -> DataSource:
    """The images of ``dataset`` in the asset that ``record`` describes.

    Raises:
        ConfigError: missing or damaged files, another number of images or classes than ``dataset``
            says, or other classes than its ``class_ids``.
    """
    if dataset.format != "moons" and dataset.channels not in (1, 3):
        raise ConfigError(f"{record.path}: dataset.channels: must be 1 or 3, not {dataset.channels}")
    kinds: dict[str, Callable[[Dataset, Record], DataSource]] = {
        "digits": read_digits,
        "moons": read_moons,
        "scenes": read_scenes,
        "scene-cells": read_scene_cells,
        "imagefolder": ImageFolder,
        "parquet": ParquetImages,
        "tars": ClassTars,
        "webdataset": WebDatasetTars,
        "captioned-tars": CaptionedTars,
    }
    if dataset.format not in kinds:
        raise ConfigError(f"{record.path}: dataset.format: {dataset.format} has no images")
    source = kinds[dataset.format](dataset, record)
    check_number(record.path, "images", len(source), dataset.images)
    return source


class ArraySource:
    """Data in memory: float32 (n, C, H, W), or uint8, of which x / 127.5 - 1 is read; labels int64 (n,)."""

    def __init__(self, dataset: Dataset, record: Record, data: Tensor, labels: Tensor) -> None:
        self._data = data
        self._labels = labels
        check_number(record.path, "classes", len(labels.unique()), dataset.classes)
        check_number(record.path, "channels", data.shape[1], dataset.channels)
        check_number(record.path, "resolution", data.shape[2], dataset.resolution)

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        data = self._data[start:stop]
        data = data.clone() if data.is_floating_point() else data.float().div_(127.5).sub_(1)
        return data, self._labels[start:stop].clone()

    def labels(self, start: int, stop: int) -> list[int]:
        return [int(label) for label in self._labels[start:stop]]


def read_digits(dataset: Dataset, record: Record) -> ArraySource:
    """scikit-learn's digits: values 0..16 become v / 8 - 1."""
    with open_npz(record.verified("digits.npz")[0]) as content:
        images, labels = torch.from_numpy(content["images"]), torch.from_numpy(content["labels"])
    return ArraySource(dataset, record, images[:, None].float().div_(8).sub_(1), labels)


def read_moons(dataset: Dataset, record: Record) -> ArraySource:
    """Two moons as "images" (2, 1, 1) of one class, in the coordinates of `data.moons`."""
    with open_npz(record.verified("moons.npz")[0]) as content:
        points, noise = content["points"], float(content["noise"])
    standard = (points - moons.MEAN) / moons.deviation(noise)
    data = torch.from_numpy(standard).float()[:, :, None, None]
    return ArraySource(dataset, record, data, torch.zeros(len(data), dtype=torch.int64))


def read_scenes(dataset: Dataset, record: Record) -> ArraySource:
    """Scenes of `data.scenes`, of which each caption is a class."""
    with open_npz(record.verified("scenes.npz")[0]) as content:
        images, labels = content["images"], torch.from_numpy(content["labels"])
    return ArraySource(dataset, record, torch.from_numpy(images).permute(0, 3, 1, 2), labels)


def read_scene_cells(dataset: Dataset, record: Record) -> ArraySource:
    """Single cells of scenes, of which each picture is a class, the empty one too.

    Classes take turns. The cells of one come in the order of the scenes, and again from the start after the
    last.
    """
    with open_npz(record.verified("scenes.npz")[0]) as content:
        images, cells = content["images"], content["cells"]
    pictures = len(np.unique(cells))
    check_number(record.path, "classes", pictures, dataset.classes)
    turns = np.arange(dataset.images)
    chosen = np.empty(dataset.images, np.int64)
    for picture in range(pictures):
        places = np.flatnonzero(cells == picture)
        own = turns % pictures == picture
        chosen[own] = np.resize(places, own.sum())
    cut = scenes.cut(images).reshape(-1, scenes.CELL, scenes.CELL, 3)[chosen]
    return ArraySource(
        dataset, record, torch.from_numpy(cut).permute(0, 3, 1, 2), torch.from_numpy(turns % pictures)
    )


class ImageFolder(ImageFiles):
    """One folder per class, numbered in the sorted order of the folders' paths; or no folders, and one class.

    The recorded files count, not what the folder holds today.
    """

    def __init__(self, dataset: Dataset, record: Record) -> None:
        super().__init__(dataset)
        self._record = record
        names = [file.name for file in record.body.files if file.name.startswith(dataset.prefix)]
        images = [PurePosixPath(name) for name in names if name.lower().endswith(SUFFIXES)]
        top = PurePosixPath(dataset.prefix)
        below = [path for path in images if path.parent != top]
        self._images = sorted((str(path.parent), path.name) for path in below or images)
        folders = sorted({folder for folder, _ in self._images})
        self._classes = {folder: number for number, folder in enumerate(folders)}
        check_folders(record.path, dataset, folders)

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, start: int, stop: int) -> list[int]:
        return [self._classes[folder] for folder, _ in self._images[start:stop]]

    def files(self, start: int, stop: int) -> list[ImageFile]:
        found = []
        for folder, name in self._images[start:stop]:
            with self._record.open(str(PurePosixPath(folder, name))) as file:
                check_size(file.path, file.size)
                found.append(ImageFile(file.read(), self._classes[folder], str(file.path)))
        return found


class PublishedLatents:
    """Latents that others encoded, in the layout of LightningDiT's extraction.

    ``latents`` and ``latents_flip`` (n, C, h, w) and ``labels`` (n,) of each file, raw.

    Files are concatenated in the order of their names (latents_rank00_shard000.safetensors, ...).

    Raises:
        ValueError: damaged files, missing tensors, other shapes, or another number of images.
    """

    def __init__(self, dataset: Dataset, shape: list[int], views: int, record: Record) -> None:
        self._dataset = dataset
        self._keys = VIEWS[:views]
        self._record = record
        self._names = names = record.names(".safetensors")
        starts = [0]
        for name in names:
            starts.append(starts[-1] + self._measure(record.file(name), shape))
        if starts[-1] != dataset.images:
            raise ConfigError(
                f"{record.path}: dataset.images: found {starts[-1]} in {len(names)} .safetensors files, "
                f"the configuration says {dataset.images}"
            )
        self._starts = np.array(starts)

    def _measure(self, path: Path, shape: list[int]) -> int:
        """Number of images of a file, after a look at its header."""
        with open_safetensors(path) as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        if missing := [key for key in (*self._keys, "labels") if key not in found]:
            raise ConfigError(f"{path}: has no {missing[0]}, only {sorted(found)}")
        count = found["labels"][0] if found["labels"] else 0
        for key in self._keys:
            if found[key] != [count, *shape]:
                raise ConfigError(f"{path}: {key}: shape {found[key]}, not {[count, *shape]}")
        return count

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Latents float32 (n, views, C, h, w) and labels int64 (n,) of positions start..stop-1."""
        latents, labels = [], []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for name, low in zip(self._names[first:], self._starts[first:].tolist()):
            if low >= stop:
                break
            path = self._record.verified_once(name)  # a shard reads two or three of them
            part = slice(max(start - low, 0), stop - low)
            with open_safetensors(path) as file:
                latents.append(torch.stack([file.get_slice(key)[part].float() for key in self._keys], dim=1))
                labels.append(file.get_slice("labels")[part].long())
            for label in labels[-1].tolist():
                check_label(f"{path}: labels", self._dataset, label)
        return torch.cat(latents), torch.cat(labels)
