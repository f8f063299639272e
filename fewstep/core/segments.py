"""Finite-difference residuals of a flow map: RCGM's chain of segments, UCGM's difference quotients.

Both say how the predicted end f(x, t, s) = x + (s - t) u(x, t, s) changes along the path; xi = 0 at the exact
map up to the order given, and an objective moves u by gain * clip(xi). No derivative is taken.

Mapping: the papers (arXiv 2512.05150, section 3; 2505.07447, section 3.1) have noise at tau = 1 and output
F = z - x. With t = 1 - tau, s = 1 - r and u = -F their change of the target, F - F_target, is xi here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .heads import average_velocity
from .path import append_dims
from .path_sample import PathSample
from .precision import upcast
from .rng import Streams

QUARTER = 1.57
"""UCGM's release writes this for pi / 2."""


class Start(NamedTuple):
    """Where a residual is taken; a `PathSample` is one too."""

    x: Tensor
    """(B, C, H, W)"""
    t: Tensor
    """(B,)"""
    v: Tensor
    """Velocity of the first step, (B, C, H, W)."""
    y: Tensor
    """(B,)"""


def end_times(t: Tensor, rng: Streams, near: float, length: float) -> Tensor:
    """s ~ U(t, 1) (B,); for a share ``near`` of the rows in the first ``length`` of that interval."""
    u = rng.uniform("s").to(t.dtype)
    if near > 0:
        u = torch.where(rng.uniform("near") < near, length * u, u)
    return t + u * (1 - t)


def chain_residual(
    u: Tensor, at: Start | PathSample, s: Tensor, target: nn.Module, segments: int, delta: float | Tensor
) -> Tensor:
    """How far a small step and a chain of jumps land from one jump, over the step; (B, C, H, W), no graph.

        xi = [delta v + sum_i (t_(i+1) - t_i) u-(x_(t_i), t_i, t_(i+1)) - (s - t) u] / delta,
        t_1 = t + delta, t_(N+1) = s, in N equal pieces

    O(delta) at the exact map, whatever N is. Where s - t <= delta it is flow matching, xi = v - u.

    Args:
        u: average velocity from t to s at the point (B, C, H, W).
        s: target times (B,), s >= t.
        target: network that jumps.
        segments: N.
        delta: step, one or per sample (B,).
    """
    u, v, gap = upcast(u.detach()), upcast(at.v), s - at.t
    short = gap <= delta
    first = gap.clamp(max=delta)
    piece = (gap - first) / segments
    moved, now = append_dims(first, v) * v, at.t + first
    with torch.no_grad():
        for i in range(segments):
            after = s if i + 1 == segments else now + piece
            jump = average_velocity(target, (at.x + moved).to(at.x.dtype), now, after, at.y)
            moved = moved + append_dims(after - now, jump) * jump
            now = after
    # A row that is short is not divided by what may be zero.
    step = torch.where(short, torch.ones_like(first), first)
    xi = (moved - append_dims(gap, u) * u) / append_dims(step, u)
    return torch.where(append_dims(short, u), v - u, xi)


def central_residual(at: PathSample, target: nn.Module, epsilon: float) -> Tensor:
    """Central difference of the predicted data along the path, (B, C, H, W), no graph.

        xi = [f(x_b, b) - f(x_a, a)] / (b - a),   a, b = t -+ epsilon cut to [0, 1],   x_a = x_t + (a - t) v,

    with f(x, t) = x + (1 - t) u-(x, t, 1). O(epsilon^2) at the exact map, O(epsilon) where it is cut.
    """
    v = upcast(at.v)
    ends = (at.t - epsilon).clamp(min=0), (at.t + epsilon).clamp(max=1)
    width = ends[1] - ends[0]
    xi = v
    with torch.no_grad():
        for t, sign in zip(ends, (-1, 1), strict=True):
            x = (at.x + append_dims(t - at.t, v) * v).to(at.x.dtype)
            u = average_velocity(target, x, t, torch.ones_like(t), at.y)
            # Small numbers over a small width: scaled one by one, for the sake of bf16.
            xi = xi + sign * append_dims((1 - t) / width, u) * u
    return xi


def sine_gain(t: Tensor) -> tuple[Tensor, Tensor]:
    """UCGM's gain 4 (1 - t) / sin(1.57 (1 - t)) and weight of the loss cos(1.57 (1 - t)), each (B,)."""
    left = 1 - t
    # left / sin(1.57 left), without dividing by zero at the data
    return 4 / (QUARTER * torch.sinc(QUARTER / math.pi * left)), torch.cos(QUARTER * left)
