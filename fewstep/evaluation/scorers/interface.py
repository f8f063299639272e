"""What a scorer is: images and their prompts to numbers, with a card, and a test before it is used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.files import sha256
from ...config import text
from ...config.backbones import Backbone
from ...core.memory import FittingBatches, place
from ...data.asset_files import read_record
from .geneval import Prompt

ROWS = 250
"""Most images that go through a scorer's network at once."""
RIGHT = 0.75
"""Share of the self-test's pictures whose own prompt must score above another one.

A scorer that guesses reaches it on 32 pictures once in 300 times.
"""


@dataclass(frozen=True)
class SelfTest:
    """Pictures with their prompts, and for each another prompt, which it does not show."""

    images: Tensor
    """uint8 (n, C, H, W)."""
    own: Sequence[Prompt]
    others: Sequence[Prompt]


@dataclass(frozen=True)
class Parts:
    """What a scorer is made of."""

    name: str
    """Of its metrics, as in the protocol."""
    entry: text.Scorer
    paths: Mapping[str, Path]
    """Of each of ``entry.files`` by its key: the model file, or the record of the asset."""
    backbone: Backbone | None
    """Of weights that are trained here."""
    prompts: Path
    """Record of the asset of the prompts, which says what cells of scenes show."""
    device: torch.device

    def file(self, key: str) -> tuple[Path, str]:
        """The file under ``key``, and its SHA-256; a published one is verified.

        Raises:
            ConfigError: it is missing, or not the one that was fetched.
        """
        path, file = self.paths[key], self.entry.files[key].file
        return (path, sha256(path)) if file is None else read_record(path).verified(file)

    def with_folder(self, key: str) -> tuple[Path, str]:
        """The published file under ``key``, and its SHA-256; every file of its folder is verified.

        Raises:
            ConfigError: a file is missing, or not the one that was fetched, or no part of the asset.
        """
        return read_record(self.paths[key]).verified_with_folder(self.entry.files[key].file)


Opener = Callable[[Parts], "Scorer"]
"""Makes a scorer of its parts, or raises a ConfigError or ValueError, in one line, naming the file."""


class Scorer(ABC):
    """A scorer of images with prompts.

    Args:
        name: of its metrics, as in the protocol.
        sha256: of the file of its weights.
        device: that its network is on.
        rows: most images, or questions about them, that go through its network at once.
    """

    computes: str
    """What the number is, in words."""
    differs: str = ""
    """Why its numbers cannot be compared with published ones, in words; empty if they can."""

    def __init__(self, name: str, sha256: str, device: torch.device | str, rows: int = ROWS) -> None:
        self.name = name
        self.sha256 = sha256
        self.device = torch.device(device)
        self._fitting = FittingBatches(f"scorer {name}", rows)

    @property
    def card(self) -> dict[str, str]:
        """What stands beside its numbers in a metrics file."""
        differs = {"differs": self.differs} if self.differs else {}
        return {"sha256": self.sha256, "computes": self.computes, **differs}

    def remarks(self, values: Sequence[Any]) -> dict[str, float]:
        """What else of the images' numbers stands there."""
        return {}

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """A number for each image, float32 (n,), or a row of numbers (n, k), on the CPU.

        Args:
            images: uint8 (n, C, H, W) on the host.
            prompts: of each image.
        """

    def overall(self, values: Sequence[Any], prompts: Sequence[Prompt]) -> dict[str, float]:
        """The number of all images under "", and those of parts of them by name.

        Args:
            values: of each image, its number or row.
            prompts: of each image.
        """
        return {"": sum(values) / len(values)}

    def faults(self, test: SelfTest) -> str:
        """Why the scorer must not be used, as the test shows it; empty if nothing is wrong."""
        own, others = (self(test.images, prompts) for prompts in (test.own, test.others))
        if not bool(torch.isfinite(torch.stack([own, others])).all()):
            return "its self-test gives NaN or infinity"
        right, count = int((own > others).sum()), len(own)
        if right < RIGHT * count:
            return f"its self-test: of {count} pictures only {right} score higher with their own prompt"
        return ""

    def _batches(self, function: Callable[..., Any], *given: Tensor | Sequence[Any]) -> list[Any]:
        """``function`` of parts of the images, and of what else has an item for each, as many at once as fit;
        tensors are on the device."""
        there = [place(each, self.device) if isinstance(each, Tensor) else each for each in given]
        return self._fitting(
            lambda part: function(*(each[part.start : part.stop] for each in there)), range(len(given[0]))
        )


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the smallest box around the true pixels of a mask (H, W), of which there are some."""
    y, x = (torch.nonzero(mask.any(axis))[:, 0] for axis in (1, 0))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


def in_shape(images: Tensor, shape: Sequence[int], what: str) -> Tensor:
    """uint8 images (n, C, H, W) as a network takes them: float32 in [-1, 1], grey ones in all its channels.

    Raises:
        ValueError: images of another size or number of channels than ``shape``, (C, H, W).
    """
    channels, *size = shape
    if images.shape[1] not in (1, channels) or list(images.shape[2:]) != size:
        raise ValueError(f"{what} takes images {tuple(shape)}, not {tuple(images.shape[1:])}")
    return images.expand(-1, channels, -1, -1).float() / 127.5 - 1
