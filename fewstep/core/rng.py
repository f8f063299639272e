"""Randomness indexed by seed, purpose and position, never by rank or device state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def fold_in(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose; any change of the arguments gives an unrelated one.

    torch's generator on the CPU takes in the low 32 bits alone, so that n^2 / 2^33 pairs of n streams
    draw the same numbers: one pair in three sets of 50,000 images.
    """
    text = "\0".join(map(str, (seed, *purpose)))
    return _seed(hashlib.sha256(text.encode()))


def fold_in_each(seed: int, purpose: str, positions: Iterable[int]) -> Iterator[int]:
    """``fold(seed, purpose, p)`` of each position p, in a third of the time."""
    shared = hashlib.sha256(f"{seed}\0{purpose}\0".encode())
    for position in positions:
        own = shared.copy()
        own.update(b"%d" % position)
        yield _seed(own)


def _seed(hashed: hashlib._Hash) -> int:
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded with ``fold(seed, *purpose)``."""
    return torch.Generator().manual_seed(fold_in(seed, *purpose))


class Streams:
    """Per-row draws for the global batch, of which this process sees rows ``rows``.

    Every draw is made on the CPU for all ``total`` rows and then cut, so that it depends on the
    seed, the step, the stream's name and the row, but not on how many processes share the batch.
    Equal names give equal numbers.
    """

    def __init__(self, seed: int, step: int, total: int, rows: slice, device: torch.device | str = "cpu"):
        self._key = (seed, "step", step)
        self._total = total
        self._rows = rows
        self._device = device

    def _cut(self, draws: Tensor) -> Tensor:
        return draws[self._rows].to(self._device)

    def uniform(self, name: str) -> Tensor:
        """U(0, 1), shape (B,), float32."""
        return self._cut(torch.rand(self._total, generator=generator(*self._key, name)))

    def normal(self, name: str) -> Tensor:
        """N(0, 1), shape (B,), float32."""
        return self._cut(torch.randn(self._total, generator=generator(*self._key, name)))

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform integers below ``high``, shape (B,), int64."""
        return self._cut(torch.randint(high, (self._total,), generator=generator(*self._key, name)))

    def spread(self, share: float) -> Tensor:
        """A share of the rows, (B,), bool: always the same ones, evenly spread over the global batch.

        Any part of the batch then holds its share of them, to one row.
        """
        place = torch.arange(self._total + 1, dtype=torch.float64)
        return self._cut((place * share + 1e-9).floor().diff() > 0)

    def normal_like(self, name: str, x: Tensor) -> Tensor:
        """N(0, 1) in the shape of ``x`` (B, ...)."""
        shape = (self._total, *x.shape[1:])
        return self._cut(torch.randn(shape, generator=generator(*self._key, name))).to(x.dtype)
