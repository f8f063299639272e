"""Values that carry a tangent: the derivative along one direction, swept through a network in its forward.

A layer takes plain tensors and duals alike and answers in kind, so that there is one forward. It
computes the value as ever, with its graph, and from it the tangent, by a rule that stands next to the
value and runs without a graph: no objective here differentiates its derivatives. Called like any
forward, the sweep passes through the hooks of DistributedDataParallel and FSDP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dual(NamedTuple):
    """A value with its graph and a tangent of the same shape without one.

    A named tuple, because the wrappers' hooks look for tensors in those.
    """

    value: Tensor
    tangent: Tensor


Carried = Tensor | Dual


def parts(x: Carried) -> tuple[Tensor, Tensor | None]:
    """Value and tangent; a plain tensor has None."""
    return x if isinstance(x, Dual) else (x, None)


def carry(value: Tensor, dx: Tensor | None, rule: Callable[[Tensor], Tensor]) -> Carried:
    """``value`` with the tangent ``rule(dx)``, or bare where the input had none."""
    if dx is None:
        return value
    with torch.no_grad():
        return Dual(value, rule(dx))


def each(move: Callable[[Tensor], Tensor], x: Carried) -> Carried:
    """A linear map without weights, such as a change of shape, of value and tangent."""
    return Dual(move(x.value), move(x.tangent)) if isinstance(x, Dual) else move(x)


def swept(
    sweep: Callable[..., Any],
    inputs: tuple[Tensor, Tensor, Tensor | None],
    y: Tensor,
    tangents: tuple[Tensor, Tensor, Tensor] | None,
) -> Any:
    """A network's ``sweep(x, t, s, y, dtype)``, with ``tangents`` of x, t, s carried along if given.

    The result as the sweep has it, one output or a pair; with tangents (value, derivative), where of two
    outputs each is a pair.
    """
    dtype = inputs[0].dtype
    if tangents is None:
        return sweep(*inputs, y, dtype)
    carried = [Dual(z, dz.detach()) for z, dz in zip(inputs, tangents, strict=True)]
    result = sweep(*carried, y, dtype)
    return tuple(result) if isinstance(result, Dual) else tuple(zip(*result))


def chunk(x: Carried, count: int) -> list[Carried]:
    """Equal pieces of the last axis."""
    if isinstance(x, Dual):
        return [Dual(*pair) for pair in zip(*(part.chunk(count, dim=-1) for part in x))]
    return list(x.chunk(count, dim=-1))


def add(x: Carried, y: Carried) -> Carried:
    """``x + y``; either may lack a tangent."""
    (x, dx), (y, dy) = parts(x), parts(y)
    if dx is None:
        return carry(x + y, dy, lambda dy: dy)
    return carry(x + y, dx, lambda dx: dx if dy is None else dx + dy)


class Linear(nn.Linear):
    """``W x + b``."""

    def forward(self, x: Carried) -> Carried:
        x, dx = parts(x)
        return carry(super().forward(x), dx, lambda dx: F.linear(dx, self.weight))


def silu_slope(dx: Tensor, x: Tensor) -> Tensor:
    """``silu'(x) dx`` in one pass: an elementwise derivative is its own transpose."""
    return torch.ops.aten.silu_backward(dx, x)


class SiLU(nn.SiLU):
    """``x sigmoid(x)``."""

    def forward(self, x: Carried) -> Carried:
        x, dx = parts(x)
        return carry(F.silu(x), dx, lambda dx: silu_slope(dx, x))
