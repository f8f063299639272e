"""Batches a training step is given: images a second that one process makes, of latents that lie in memory.

    python -m fewstep.bench load [--large] [--batch 64]

It is the most that a training can use: where a step's images/s come near, steps wait for their batch, and a
training says at its end for how long. Reading from files comes on top. On a GPU batches are made by a thread,
pinned and copied, as in a training.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..data.loader import Loader
from ..data.shards import LatentShards
from ..training.feed import Feed
from .meters import DEVICE, Case

STEPS = 8
"""In one call."""


class LatentsInMemory:
    """What `Loader` asks of latents, without files."""

    moments = False

    def __init__(self, shape: list[int], views: int, images: int) -> None:
        self.shape, self.views = shape, views
        self.labels = torch.arange(images) % 10
        self._values = torch.randn(images, views, *shape, generator=torch.Generator().manual_seed(0)).half()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, samples: Tensor, views: Tensor, _draws: Tensor | None) -> Tensor:
        return self._values[samples, views].float()

    def normalise(self, latents: Tensor) -> Tensor:
        return latents * 1.0


def cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Batches of digits' latents, or with ``--large`` of VA-VAE's with mirrored views."""
    name, shape, views = (
        ("vavae 32x16x16", [32, 16, 16], 2) if given.large else ("digits 4x4x4", [4, 4, 4], 1)
    )
    latents = cast(LatentShards, LatentsInMemory(shape, views, 1024))
    rows = [slice(0, given.batch)]
    loader = Loader(latents, 0, given.batch)
    feed = Feed(loader, 0, given.batch, rows, DEVICE, lambda _: (), 1 << 40)
    steps = count()

    def call() -> None:
        for _ in range(STEPS):
            feed.take(next(steps))

    return [Case({"case": name, "batch": str(given.batch)}, call, STEPS * given.batch)]
