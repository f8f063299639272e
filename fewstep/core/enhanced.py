"""Guidance mixed into the velocity to learn from: UCGM's enhanced targets (arXiv 2505.07447, section 3.1).

Between data x1 and noise x0 lies the path; a reference network moves both ends by the same rule, and
the straight line between the moved ends goes through the same x_t with the velocity

    teacher:  v* = (1 - w) (x1 - x0) + w v_T(x_t, t, y)            frozen multi-step teacher, w = zeta
    own:      v* = (x1 - x0) + zeta (v(x_t, t, y) - v-(x_t, t, null))     v- the target network

for t >= start. Nearer to noise zeta gives way to a mean of two: w = ``beyond`` with a teacher,
(1 - beyond) (x1 - x0) + beyond v(x_t, t, y) without. The teacher's is a guidance of scale
1 + zeta (w0 - 1) if v_T stands for one of scale w0; the own model's of 1 / (1 - zeta) once it is learned.

Mapping: the paper moves x and z with f^x and f^z, and has noise at tau = 1; as alpha z* + gamma x* = x_tau,
the moved pair has the velocity above. Its window tau in (0, s] is t >= 1 - s.

Rows whose label is dropped keep x1 - x0 under a teacher, and without one the mean of it and v(x_t, t, null).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn

from ..config.objectives import Enhancement
from .heads import average_velocity
from .method import Batch, Context
from .path import append_dims
from .path_sample import PathSample, dropped
from .precision import upcast


def share(enhancement: Enhancement, t: Tensor) -> Tensor:
    """Weight of the reference at times ``t`` (B,): zeta from ``start`` on, ``beyond`` before it."""
    inside = t >= enhancement.start
    return torch.where(inside, enhancement.zeta, enhancement.beyond).to(t.dtype)


def blend(v: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    """(1 - w) v + w reference, (B, C, H, W), for weights (B,); w above 1 extrapolates."""
    return upcast(v) + append_dims(weight, v) * (upcast(reference) - upcast(v))


class EnhancedSample(PathSample):
    """A sample of the path whose ``v`` is the enhanced velocity.

    Labels are dropped in a share ``ctx.label_dropout`` of the rows, under a teacher as well.

    Args:
        net: the network that learns, which the own form asks, without gradient, at s = t.

    Raises:
        ValueError: on ``v``, if the reference is the teacher and there is none.
    """

    def __init__(
        self, batch: Batch, ctx: Context, t: Tensor, enhancement: Enhancement | None, net: nn.Module
    ):
        super().__init__(batch, ctx, t)
        self._enhancement = enhancement
        self._net = net
        self._dropped = dropped(batch, ctx)
        self.y = torch.where(self._dropped, torch.full_like(batch.y, ctx.null), batch.y)

    @cached_property
    def line(self) -> Tensor:
        """x1 - x0, (B, C, H, W)."""
        return self._batch.x1 - self._batch.x0

    @cached_property
    def own(self) -> Tensor:
        """The network's velocity here, (B, C, H, W), without a graph; a method that has it may set it."""
        with torch.no_grad():
            return average_velocity(self._net, self.x, self.t, self.t, self.y)

    @cached_property
    def v(self) -> Tensor:
        """The enhanced velocity, (B, C, H, W), without a graph."""
        e = self._enhancement
        if e is None:
            return self.line
        if e.reference == "own":
            return self._own(e)
        if self._ctx.teacher is None:
            raise ValueError("enhance.reference: teacher needs a teacher; use own, or give the method one")
        weight = share(e, self.t).masked_fill(self._dropped, 0)
        return blend(self.line, self._ctx.teacher(self.x, self.t, self.y), weight)

    def _own(self, e: Enhancement) -> Tensor:
        reference = self._ctx.follow(self._net)
        null = torch.full_like(self.y, self._ctx.null)
        with torch.no_grad():
            unconditional = average_velocity(reference, self.x, self.t, self.t, null)
        guided = self.line + e.zeta * (self.own - unconditional)
        # On rows without label the network's own prediction is the unconditional one.
        mean = blend(self.line, self.own, torch.full_like(self.t, e.beyond))
        plain = self._dropped | (self.t < e.start)
        return torch.where(append_dims(plain, mean), mean, guided)
