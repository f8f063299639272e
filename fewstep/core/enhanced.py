"""Guidance mixed into the velocity to learn from: UCGM's enhanced targets (arXiv 2505.07447, section 3.1).

Between data x1 and noise x0 lies the path; a reference network moves both ends by the same rule, and
the straight line between the moved ends goes through the same x_t with the velocity

    line:       v* = (x1 - x0) + zeta (v-(x_t, t, y) - (x1 - x0))
    online:     v* = (x1 - x0) + zeta (v(x_t, t, y) - v-(x_t, t, null))
    reference:  v* = (x1 - x0) + zeta (v-(x_t, t, y) - v-(x_t, t, null))

for t >= start, by ``difference``. v is the network that learns; v- is the frozen multi-step teacher, or the
learning network's moving average (``reference``). Nearer to noise v* is the mean
(1 - beyond) (x1 - x0) + beyond c of the line and the conditional prediction c, which is v(x_t, t, y) in form
online and v-(x_t, t, y) in the others. Rows whose label is dropped keep x1 - x0 in form line; in the others
they follow the mean of it and v-(x_t, t, null), at all times.

With a teacher of guidance scale w0, form line is a guidance of scale 1 + zeta (w0 - 1). With the own network
form online is one of 1 / (1 - zeta) once it is learned; with a frozen teacher without guidance form reference
is one of 1 + zeta.

Mapping: the paper moves x and z with f^x and f^z, and has noise at tau = 1; as alpha z* + gamma x* = x_tau,
the moved pair has the velocity above. Its window tau in (0, s] is t >= 1 - s. The release calls the three
forms fc-vs-xz, ft-vs-fe and fc-vs-fe.
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
        net: the network that learns, asked at s = t without gradient.

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
        if e.reference == "teacher" and self._ctx.teacher is None:
            raise ValueError("enhance.reference: teacher needs a teacher; use own, or give the method one")
        conditional = self.own if e.difference == "online" else self._reference(e, self.y)
        if e.difference == "line":
            return blend(self.line, conditional, share(e, self.t).masked_fill(self._dropped, 0))
        unconditional = self._reference(e, torch.full_like(self.y, self._ctx.null))
        guided = self.line + e.zeta * (conditional - unconditional)
        followed = unconditional.where(append_dims(self._dropped, self.x), conditional)
        mean = blend(self.line, followed, torch.full_like(self.t, e.beyond))
        return mean.where(append_dims(self._dropped | (self.t < e.start), self.x), guided)

    def _reference(self, e: Enhancement, y: Tensor) -> Tensor:
        """v- at this point for labels ``y`` (B,), (B, C, H, W), without a graph."""
        if e.reference == "teacher":
            assert self._ctx.teacher is not None
            return self._ctx.teacher(self.x, self.t, y)
        with torch.no_grad():
            return average_velocity(self._ctx.follow(self._net), self.x, self.t, self.t, y)
