"""Networks with two outputs: velocity and flow map, used as one average velocity; or velocity and scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from .path import append_dims
from .precision import upcast

Output: TypeAlias = "Tensor | tuple[Tensor, Tensor]"
"""What a network returns: F(x, t, s, y), (B, C, H, W), or velocity and flow map, or F and a scalar (B,)."""


def average_velocity(net: Callable[..., Output], x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """F(x, t, s, y) of a network with one output or two, (B, C, H, W), at least float32.

    Of two outputs the velocity answers for s = t, and the flow map for any other s: without an embedding
    of s it knows s = 1 only, and plans with other ends are refused (plan/cells.py).
    """
    return merged(net(x, t, s, y), t, s)


def merged(output: Output, t: Tensor, s: Tensor) -> Tensor:
    """One output as it is, without a scalar; of two, row by row, that which belongs to times t, s (B,)."""
    if isinstance(output, Tensor):
        return upcast(output)
    velocity, flow_map = output
    if flow_map.ndim == 1:
        return upcast(velocity)
    return upcast(velocity).where(append_dims(s == t, velocity), upcast(flow_map))
