"""The straight path between noise and data, and the flow map along it.

One convention everywhere: x_t = t x1 + (1 - t) x0 with noise x0 at t = 0 and data x1 at t = 1,
velocity v = x1 - x0, and f(x, t, s) = x + (s - t) F(x, t, s) with the average velocity F
(DE-CM, arXiv 2602.10764, Eq. 9).
"""

from __future__ import annotations

from torch import Tensor


def append_dims(t: Tensor, x: Tensor) -> Tensor:
    """Give per-sample numbers ``t`` (B,) trailing axes of length one, to multiply ``x`` (B, ...)."""
    return t.reshape(-1, *[1] * (x.dim() - 1))


def interpolate(x0: Tensor, x1: Tensor, t: Tensor) -> Tensor:
    """x_t = t x1 + (1 - t) x0 for times ``t`` (B,); shapes of x0 and x1 (B, ...)."""
    t = append_dims(t, x0)
    return t * x1 + (1 - t) * x0


def flow_map(x: Tensor, t: Tensor, s: Tensor, F: Tensor) -> Tensor:
    """f(x, t, s) = x + (s - t) F: where the average velocity ``F`` carries ``x`` from t to s, (B, ...)."""
    return x + append_dims(s - t, x) * F
