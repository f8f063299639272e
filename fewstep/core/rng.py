"""Randomness indexed by seed, purpose and position, never by rank or device state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Literal, NamedTuple

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
    """``fold_in(seed, purpose, p)`` of each position p, in a third of the time."""
    shared = hashlib.sha256(f"{seed}\0{purpose}\0".encode())
    for position in positions:
        own = shared.copy()
        own.update(b"%d" % position)
        yield _seed(own)


def _seed(hashed: hashlib._Hash) -> int:
    return int.from_bytes(hashed.digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator seeded with ``fold_in(seed, *purpose)``."""
    return torch.Generator().manual_seed(fold_in(seed, *purpose))


@dataclass(frozen=True)
class Draw:
    """Random numbers that a loss asks for, one row for each sample."""

    kind: Literal["uniform", "normal", "integers", "beta"]
    name: str
    """Of the stream; draws of equal names share their random bits."""
    shape: tuple[int, ...] = ()
    """Of one row."""
    parameters: tuple[float, ...] = ()
    """Bound of integers; alpha and beta of a beta distribution."""

    def make(self, seed: int, step: int, total: int) -> Tensor:
        """The numbers for the ``total`` rows of a step's global batch, (total, *shape), on the CPU."""
        source, shape = generator(seed, "step", step, self.name), (total, *self.shape)
        if self.kind == "integers":
            return torch.randint(int(self.parameters[0]), shape, generator=source)
        if self.kind == "normal":
            return torch.randn(shape, generator=source)
        uniform = torch.rand(shape, generator=source)
        if self.kind == "uniform":
            return uniform
        from scipy.special import betaincinv  # half a second that few trainings need

        return torch.from_numpy(betaincinv(*self.parameters, uniform.double().numpy())).float()


class Rows(NamedTuple):
    """Some rows of a process's part of the batch, always the same ones, so that shapes are fixed."""

    mask: Tensor
    """(B,), bool."""
    inside: Tensor
    """Their indices, (N,), int64."""
    outside: Tensor
    """Indices of the others, (B - N,), int64."""


class Streams:
    """Per-row draws for the global batch, of which this process sees rows ``rows``.

    Every draw is made on the CPU for all ``total`` rows and then cut, so that it depends on the
    seed, the step, the stream's name and the row, but not on how many processes share the batch.
    Equal names give equal numbers.

    Args:
        made: draws for the rows ``rows`` that are on the device already; any other is made when asked for.
        sharded: the processes share a network, and must call it equally often.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        total: int,
        rows: slice,
        device: torch.device | str = "cpu",
        made: Mapping[Draw, Tensor] = MappingProxyType({}),
        sharded: bool = False,
    ) -> None:
        self._seed, self._step, self._total, self._rows, self._device = seed, step, total, rows, device
        self._sharded = sharded
        self.made = dict(made)
        """All draws so far, (B, ...) each."""

    def _draw(self, draw: Draw) -> Tensor:
        if draw not in self.made:
            numbers = draw.make(self._seed, self._step, self._total)
            self.made[draw] = numbers[self._rows].to(self._device)
        return self.made[draw]

    def uniform(self, name: str) -> Tensor:
        """U(0, 1), shape (B,), float32."""
        return self._draw(Draw("uniform", name))

    def normal(self, name: str) -> Tensor:
        """N(0, 1), shape (B,), float32."""
        return self._draw(Draw("normal", name))

    def integers(self, name: str, high: int) -> Tensor:
        """Uniform integers below ``high``, shape (B,), int64."""
        return self._draw(Draw("integers", name, parameters=(high,)))

    def beta(self, name: str, alpha: float, beta: float) -> Tensor:
        """Beta(alpha, beta), by its quantile function; shape (B,), float32."""
        return self._draw(Draw("beta", name, parameters=(alpha, beta)))

    def signs_like(self, name: str, x: Tensor) -> Tensor:
        """-1 or 1 with equal odds (Rademacher), in the shape of ``x`` (B, ...)."""
        drawn = self._draw(Draw("integers", name, shape=tuple(x.shape[1:]), parameters=(2,)))
        return (2 * drawn - 1).to(x.dtype)

    def normal_like(self, name: str, x: Tensor) -> Tensor:
        """N(0, 1) in the shape of ``x`` (B, ...)."""
        return self._draw(Draw("normal", name, shape=tuple(x.shape[1:]))).to(x.dtype)

    def spread(self, share: float) -> Rows:
        """A share of the rows, evenly spread over the global batch.

        Any part of the batch then holds its share of them, to one row. Samples come in random order, so
        that these rows are as good as rows drawn at random.

        Raises:
            ValueError: a share between 0 and 1 of the global batch is none of its rows, or all; or of these
                rows, if the network is sharded: another process might call it, and wait for ever.
        """
        rows = self.choose(_spread, float(share))
        if self._sharded and 0 < share < 1 and not (len(rows.inside) and len(rows.outside)):
            raise ValueError(
                f"--shard fsdp2: {len(rows.mask)} rows at once have no row for a share of {share:g}, or for "
                "the rest; give a larger --device-batch"
            )
        return rows

    def choose(self, rule: Callable[..., Tensor], *given: Hashable) -> Rows:
        """The rows for which ``rule(place, total, *given)`` holds, place (total,) in the global batch, int64.

        ``rule`` is a function of a module: what it has chosen once is kept.
        """
        start, stop, _ = self._rows.indices(self._total)
        return _choose(self._total, start, stop, torch.device(self._device), rule, *given)

    def strata(self, name: str) -> Tensor:
        """U(0, 1), shape (B,), float64: each row draws from its own stratum, see :func:`stratum`."""
        start, stop, _ = self._rows.indices(self._total)
        place = torch.arange(start, stop, device=self._device)
        return (stratum(place, self._total) + self.uniform(name).double()) / self._total


def stratum(place: Tensor, total: int) -> Tensor:
    """Which of ``total`` equal parts of (0, 1) a row draws from, by its place in the batch; int64.

    Neighbours are far apart, so that any part of the batch covers (0, 1) evenly.
    """
    stride = next(n for n in range(max(1, round(0.618 * total)), 2 * total) if math.gcd(n, total) == 1)
    return place * stride % total


def _spread(place: Tensor, total: int, share: float) -> Tensor:
    """See `Streams.spread`."""
    below = (torch.arange(total + 1).double() * share + 1e-9).floor()
    if 0 < share < 1 and below[-1] in (0, total):
        raise ValueError(
            f"a global batch of {total} rows has no row for a share of {share:g}, or for the rest"
        )
    return below.diff()[place] > 0


@cache
def _choose(
    total: int, start: int, stop: int, device: torch.device, rule: Callable[..., Tensor], *given: Hashable
) -> Rows:
    """See `Streams.choose`; kept on the device, so that a step copies nothing to it."""
    mask = rule(torch.arange(total), total, *given)[start:stop]
    return Rows(*(each.to(device) for each in (mask, mask.nonzero()[:, 0], (~mask).nonzero()[:, 0])))
