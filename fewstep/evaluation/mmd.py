"""Maximum mean discrepancy of two samples (Gretton et al., 2012, JMLR 13)."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1_000
"""Rows of the kernel matrix that are in memory at once."""


def mmd_squared(x: Tensor, y: Tensor, gamma: float) -> float:
    """Unbiased estimate of MMD^2 with k(a, b) = exp(-gamma |a - b|^2), in float64.

    Pairs of a point with itself are left out (Lemma 6 there): for two samples of one distribution the
    estimate is around 0, and may be negative.

    Args:
        x, y: samples (n, F) and (m, F).

    Raises:
        ValueError: a sample has fewer than two points.
    """
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"MMD needs two points of each side, not {n} and {m}")
    x, y = x.double(), y.double()
    # exp(0) = 1 on the diagonals.
    own = (_sum(x, x, gamma) - n) / (n * (n - 1)) + (_sum(y, y, gamma) - m) / (m * (m - 1))
    return own - 2 * _sum(x, y, gamma) / (n * m)


def _sum(x: Tensor, y: Tensor, gamma: float) -> float:
    total = 0.0
    for part in x.split(ROWS):
        distances = torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist")
        total += float(torch.exp(-gamma * distances.square()).sum())
    return total
