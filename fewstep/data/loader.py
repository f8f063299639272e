"""Training batches as a pure function of seed and step: no state, no workers, no rank."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from ..core.method import Batch
from ..core.rng import fold_in_each, generator
from .shards import LatentShards


def positions(step: int, batch: int) -> Tensor:
    """Positions step*batch .. step*batch + batch - 1 in the endless sequence of samples, int64."""
    return torch.arange(step * batch, (step + 1) * batch)


def rows_at_once(shape: Sequence[int]) -> int:
    """Rows of the shape (C, H, W) that every device holds: 128, and more where they are tiny."""
    return max(128, 16384 // prod(shape))


def split_batch(batch: int, processes: int, rank: int, most: int, group: int = 1) -> list[slice]:
    """Rows of the global batch that a process handles, one slice of whole groups per micro-batch.

    Raises:
        ValueError: the processes do not divide the batch into groups, or a device cannot hold one.
    """
    if batch % (processes * group):
        groups = f" into groups of {group} rows" if group > 1 else ""
        raise ValueError(
            f"train.global_batch_size: {batch} does not divide among {processes} processes{groups}"
        )
    if most < group:
        raise ValueError(f"--device-batch {most}: below the {group} rows that the loss treats together")
    own = batch // processes
    micro = max(size for size in range(group, min(own, most) + 1, group) if own % size == 0)
    return [slice(rank * own + first, rank * own + first + micro) for first in range(0, own, micro)]


class Loader:
    """Batches of normalised latents with noise.

    Position p of the endless sequence lies in epoch p // N, which visits every image once in its
    own order. Image, mirrored view, draw of a stored posterior and noise depend on seed and position
    alone, hence neither on the number of processes nor on how a batch is cut, and any step can be
    the first one. Noise, the larger part of the work, is drawn by torch's number of threads.
    """

    def __init__(self, shards: LatentShards, seed: int, batch: int) -> None:
        self.shards = shards
        self._seed = seed
        self._batch = batch
        self._orders: dict[int, Tensor] = {}
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._threads)

    def rows(self, step: int, rows: slice, device: torch.device | str = "cpu") -> Batch:
        """The given rows of the global batch of one step.

        Returns:
            x1 and x0 float32 (n, C, H, W), y int64 (n,), on ``device``.
        """
        at = positions(step, self._batch)[rows]
        samples = self._samples(at)
        if self.shards.views == 2:
            views = torch.tensor([seed & 1 for seed in fold_in_each(self._seed, "view", at.tolist())])
        else:
            views = torch.zeros_like(at)
        draws = self._normal("posterior", at) if self.shards.moments else None
        x1 = self.shards.normalise(self.shards.read(samples, views, draws))
        x0 = self._normal("noise", at)
        return Batch(x1=x1.to(device), x0=x0.to(device), y=self.shards.labels[samples].to(device))

    def _normal(self, purpose: str, at: Tensor) -> Tensor:
        """Standard normal (n, C, H, W), each row by its position."""
        noise = torch.empty(len(at), *self.shards.shape)

        def draw(first: int) -> None:
            draws, part = torch.Generator(), slice(first, None, self._threads)
            seeds = fold_in_each(self._seed, purpose, at[part].tolist())
            for row, seed in zip(noise[part], seeds, strict=True):
                row.normal_(generator=draws.manual_seed(seed))

        if self._threads == 1:
            draw(0)
        else:
            list(self._pool.map(draw, range(self._threads)))
        return noise

    def _samples(self, at: Tensor) -> Tensor:
        """Images at the given positions."""
        size = len(self.shards)
        epochs, within = at // size, at % size
        self._orders = {
            epoch: self._orders[epoch]
            if epoch in self._orders
            else torch.randperm(size, generator=generator(self._seed, "order", epoch))
            for epoch in epochs.unique().tolist()
        }
        samples = torch.empty_like(at)
        for epoch, order in self._orders.items():
            chosen = epochs == epoch
            samples[chosen] = order[within[chosen]]
        return samples
