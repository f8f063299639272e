"""Distributions of the training time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.objectives import TimeDistribution
from .rng import Streams

LOWEST, HIGHEST = 0.004, 160.0
"""Least and greatest noise level of EDM for data of unit variance; EDM has 0.002 and 80 for deviation 1/2."""


def karras_grid(
    points: int, device: torch.device | str = "cpu", rho: float = 7.0, intervals: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """EDM's noise levels, falling, and their times t = 1 / (1 + sigma), rising; each (points,), float64.

    (1 - t) / t is the noise level of x_t / t (EDM, arXiv 2206.00364, Eq. 5). The ends, t = 0.006 and
    0.996, are moved to 0 and 1, where samplers start and end. A grid of fewer ``intervals`` (), below
    ``points``, repeats its last point, so that its shape is fixed.
    """
    ramp = torch.linspace(0, 1, points, dtype=torch.float64, device=device)
    if intervals is not None:
        ramp = (torch.arange(points, device=device) / intervals).clamp(max=1)
    sigma = _levels(ramp, LOWEST, HIGHEST, rho)
    return sigma, (1 / (1 + sigma)).where(ramp > 0, 0).where(ramp < 1, 1)


def karras_levels(points: int, lowest: float, highest: float, rho: float = 7.0) -> Tensor:
    """EDM's noise levels between two of them, falling, (points,), float64 (arXiv 2206.00364, Eq. 5)."""
    return _levels(torch.linspace(0, 1, points, dtype=torch.float64), lowest, highest, rho)


def _levels(ramp: Tensor, lowest: float, highest: float, rho: float) -> Tensor:
    return (highest ** (1 / rho) + ramp * (lowest ** (1 / rho) - highest ** (1 / rho))) ** rho


def sample_times(law: TimeDistribution, rng: Streams, name: str) -> Tensor:
    """Times in [0, 1], shape (B,), float32, drawn from the stream ``name``; equal names, equal times.

    * uniform: t ~ U(0, 1).
    * segments: k / N with k uniform on 0 .. N - 1 (DE-CM, section 4.4). The end point t = 1 is left
      out because the consistency residual is void there.
    * arctan: t = 1 - (2 / pi) atan(exp n), n ~ N(mean, std^2) (sCM's law as FACM writes it).
    * beta: t ~ Beta(alpha, beta), by its quantile function.
    * logit-normal: t = 1 / (1 + exp(-n)). FACM's "log" law with mean m is this one with mean -m.
    """
    if law.law == "uniform":
        return rng.uniform(name)
    if law.law == "segments":
        assert law.segments is not None
        return rng.integers(name, law.segments).float() / law.segments
    if law.law == "beta":
        assert law.alpha is not None and law.beta is not None
        return rng.beta(name, law.alpha, law.beta)
    assert law.mean is not None and law.std is not None
    n = law.mean + law.std * rng.normal(name)
    if law.law == "arctan":
        return 1 - 2 / math.pi * torch.atan(torch.exp(n))
    return torch.sigmoid(n)


def sample_interval(law: TimeDistribution, rng: Streams, equal: Tensor) -> tuple[Tensor, Tensor]:
    """Two draws of ``law``, sorted: t <= s, each (B,), float32; s = t in the rows ``equal`` (B,), bool."""
    one, other = sample_times(law, rng, "t"), sample_times(law, rng, "s")
    t, s = torch.minimum(one, other), torch.maximum(one, other)
    return t, torch.where(equal, t, s)
