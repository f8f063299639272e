"""The beta distribution's quantiles, so that one uniform draw gives one draw of it."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

TERMS = 64
"""Of the power series in x, for x <= 1/2: what follows is below 2^-64 of the sum."""
ROUNDS = 60
"""Most rounds of Newton's method; halving the interval that often would do as well."""


@lru_cache(maxsize=32)
def _series(a: float, b: float) -> Tensor:
    """Coefficients c_n of I_x(a, b) = x^a sum_n c_n x^n, float64."""
    beta = math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
    coefficients, product = [], 1.0
    for n in range(TERMS):
        coefficients.append(product / (a + n) / beta)
        product *= (n + 1 - b) / (n + 1)
    return torch.tensor(coefficients, dtype=torch.float64)


def _lower(x: Tensor, a: float, b: float) -> Tensor:
    """I_x(a, b) for 0 <= x <= 1/2."""
    total = torch.zeros_like(x)
    for c in reversed(_series(a, b).tolist()):
        total = total * x + c
    return x.pow(a) * total


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """Regularised incomplete beta function I_x(a, b), float64, in the shape of ``x`` in [0, 1]."""
    x = x.double()
    return torch.where(x <= 0.5, _lower(x.clamp(max=0.5), a, b), 1 - _lower((1 - x).clamp(max=0.5), b, a))


def beta_quantile(u: Tensor, a: float, b: float) -> Tensor:
    """x with I_x(a, b) = u, float64, for ``u`` in [0, 1] of any shape.

    Closed where a or b is 1; else Newton's method, halving where it would leave what is known.
    """
    u = u.double()
    if b == 1:
        return u.pow(1 / a)
    if a == 1:
        return -torch.expm1(torch.log1p(-u) / b)
    middle = float(_lower(torch.tensor(0.5, dtype=torch.float64), a, b))
    lower = u <= middle
    return torch.where(
        lower, _solve(u.clamp(max=middle), a, b), 1 - _solve((1 - u).clamp(max=1 - middle), b, a)
    )


def _solve(u: Tensor, a: float, b: float) -> Tensor:
    """The quantile, where it is at most 1/2."""
    low, high = torch.zeros_like(u), torch.full_like(u, 0.5)
    # The first term of the series alone.
    x = (u / float(_series(a, b)[0])).pow(1 / a).clamp(max=0.5)
    scale = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    for _ in range(ROUNDS):
        error = _lower(x, a, b) - u
        low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
        density = scale * x.pow(a - 1) * (1 - x).pow(b - 1)
        step = x - error / density
        inside = (step > low) & (step < high) & density.isfinite()
        after = torch.where(inside, step, (low + high) / 2)
        after = torch.where(error == 0, x, after)
        if bool(((after - x).abs() <= 1e-14 * after).all()):
            return after
        x = after
    return x
