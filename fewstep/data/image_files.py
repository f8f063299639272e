"""Image files: decoding to tensors, and the classes behind their labels."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..config import ConfigError
from ..config.settings import Dataset

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is decoded, whatever a file's name says: Pillow would start other programs for some formats."""
IMAGE_BYTES = 1 << 27
"""The most that an image may have as a file."""
PIXELS = 89_478_485
"""The most that an image may have, from which on Pillow warns of a decompression bomb."""
ASPECT = 100
"""The most that one side of an image may be of the other: the crop of a long line takes gigabytes."""
WORDNET = re.compile(r"(?:^|/)(n\d{8})[_/.]")
"""The class in a name such as n01440764_10026_n01440764.JPEG."""


@dataclass(frozen=True)
class ImageFile:
    """An image as it lies on disk; ``where`` names it in messages."""

    content: bytes
    label: int
    where: str


class ImageFiles(ABC):
    """A data set of image files, with labels, in a fixed order."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def files(self, start: int, stop: int) -> list[ImageFile]:
        """The files of positions start..stop-1."""

    def labels(self, start: int, stop: int) -> list[int]:
        """Labels alone of positions start..stop-1; no image is decoded."""
        return [file.label for file in self.files(start, stop)]

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images float32 (n, C, H, W) in [-1, 1] and labels int64 (n,) of positions start..stop-1.

        They are decoded by torch's number of threads.

        Raises:
            ConfigError: naming a file that is not an image, or one of another size if nothing is cropped.
        """
        files = self.files(start, stop)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            images = list(pool.map(self._decode, files))
        return torch.stack(images), torch.tensor([file.label for file in files])

    def _decode(self, file: ImageFile) -> Tensor:
        own = self._dataset
        try:
            return read_image(io.BytesIO(file.content), own.channels, own.resolution, own.crop)
        except UnidentifiedImageError:
            raise ConfigError(f"{file.where}: not an image ({', '.join(FORMATS)})") from None
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{file.where}: {error}") from None


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """Centre crop of side ``size`` as in ADM (Dhariwal and Nichol, 2021) and all that followed it.

    The image is halved with a box filter while its short side is at least twice ``size``, then
    resized bicubically so that the short side is ``size``.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image(stream: IO[bytes], channels: int, size: int, crop: str) -> Tensor:
    """One image as float32 (channels, size, size) in [-1, 1]: x / 127.5 - 1.

    The orientation in a camera's EXIF data is ignored, as it is by everyone who reports numbers.

    Raises:
        ValueError: not an image, or one that has no such values or is too large (see
            `_check_pixels`, `_check_shape`), or of another size and ``crop`` is none.
    """
    with Image.open(stream, formats=FORMATS) as raw:
        _check_shape(raw.size)
        _check_pixels(raw)
        image = raw.convert("RGB" if channels == 3 else "L")
    if crop == "adm":
        image = adm_crop(image, size)
    elif image.size != (size, size):
        raise ValueError(f"is {image.width}x{image.height}, not {size}x{size}, and crop is none")
    pixels = torch.from_numpy(np.array(image)).reshape(size, size, channels)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)


def _check_shape(size: tuple[int, int]) -> None:
    """Refuse what would take gigabytes to decode or to crop, before any of it is decoded.

    Raises:
        ValueError: more than PIXELS, or a side ASPECT times the other.
    """
    width, height = size
    if width * height > PIXELS:
        raise ValueError(f"is {width}x{height}: more than {PIXELS} pixels")
    if max(size) > ASPECT * min(size):
        raise ValueError(f"is {width}x{height}: one side is over {ASPECT} times the other")


def _check_pixels(image: Image.Image) -> None:
    """Refuse what Pillow would convert to other colours.

    Raises:
        ValueError: more than 8 bits a channel, or transparent pixels.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"has more than 8 bits a channel (mode {image.mode}); convert it first")
    alpha = "A" in image.getbands() or "transparency" in image.info
    if alpha and np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
        raise ValueError("has transparent pixels; lay it over a background first")


@cache
def class_ids(name: str) -> tuple[str, ...]:
    """The sorted WordNet ids of a known set of classes, from the list of that name beside this module.

    Label k is the k-th of them.
    """
    return tuple(Path(__file__).with_name(f"{name}.txt").read_text(encoding="ascii").split())


def check_number(where: str | Path, key: str, found: int, expected: int) -> None:
    """Refuse a data set in which another number was found than ``dataset.KEY`` says."""
    if found != expected:
        text = f"{where}: dataset.{key}: found {found}, the configuration says {expected}"
        remedy = "; after files came or went, snakemake -R fetch" if key == "images" else ""
        raise ConfigError(text + remedy)


def check_size(where: str | Path, size: int) -> None:
    """Refuse an image of more than IMAGE_BYTES, before it is read."""
    if size > IMAGE_BYTES:
        raise ConfigError(f"{where}: has {size} bytes, more than {IMAGE_BYTES}, which is no image")


def check_folders(where: str | Path, dataset: Dataset, folders: Sequence[str]) -> None:
    """Refuse folders, given in the order of their labels, that are not ``dataset.class_ids``.

    Raises:
        ConfigError: another number of classes, or ids that are missing or unknown.
    """
    check_number(where, "classes", len(folders), dataset.classes)
    if dataset.class_ids is None:
        return
    ids = class_ids(dataset.class_ids)
    names = [PurePosixPath(folder).name for folder in folders]
    if names != list(ids):
        unknown, missing = sorted({*names} - {*ids}), sorted({*ids} - {*names})
        raise ConfigError(
            f"{where}: dataset.class_ids: the folders are not the classes of {dataset.class_ids} in their "
            f"order: unknown {unknown[:3]}, missing {missing[:3]}"
        )


def check_label(where: str, dataset: Dataset, label: int | None, name: str | None = None) -> int:
    """The label, if it is one of the data set's, and that of the WordNet id in the image's ``name``, if any.

    Raises:
        ConfigError: neither is so.
    """
    if label is None or not 0 <= label < dataset.classes:
        raise ConfigError(f"{where}: label {label} is not one of {dataset.classes} classes")
    if dataset.class_ids is not None and (told := WORDNET.search(name or "")):
        ids = class_ids(dataset.class_ids)
        if label >= len(ids) or ids[label] != told[1]:
            raise ConfigError(
                f"{where}: label {label} on an image of {told[1]}, but labels must count the sorted ids of "
                f"{dataset.class_ids}"
            )
    return label
