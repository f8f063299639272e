"""A sample of the path with the velocity that a method follows there."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ..config.objectives import TimeDistribution
from .method import Batch, Context
from .path import interpolate
from .times import sample_times


def labels(batch: Batch, ctx: Context) -> Tensor:
    """Labels (B,), a share ``ctx.label_dropout`` of them null when learning from data alone.

    The rows dropped are the same all through a step. A teacher's velocity belongs to its label, so
    nothing is dropped under a teacher.
    """
    if not drops_labels(ctx):
        return batch.y
    return torch.where(dropped(batch, ctx), torch.full_like(batch.y, ctx.null), batch.y)


def drops_labels(ctx: Context) -> bool:
    """Whether rows of a `PathSample` may have lost their label."""
    return ctx.teacher is None and ctx.label_dropout > 0


def without_interval(ctx: Context, share: float) -> Tensor:
    """Which rows have s = t in MeanFlow and iMF, (B,), bool: a share of them.

    Where labels are dropped the same draws say which: the releases take the first rows of a batch for both,
    so that rows without label have s = t, as far as the share of these goes.
    """
    return ctx.rng.uniform("label_dropout" if drops_labels(ctx) else "equal") < share


def dropped(batch: Batch, ctx: Context) -> Tensor:
    """Which rows lose their label, (B,), bool: a share ``ctx.label_dropout``, the same all through a step."""
    if ctx.label_dropout == 0:
        return torch.zeros_like(batch.y, dtype=torch.bool)
    return ctx.rng.uniform("label_dropout") < ctx.label_dropout


class PathSample:
    """(x_t, t, y) on the path of a batch; the teacher is asked only if ``v`` is used."""

    def __init__(self, batch: Batch, ctx: Context, t: Tensor):
        self._batch = batch
        self._ctx = ctx
        self.t = t.to(batch.x1.dtype)
        """(B,)"""
        self.y = labels(batch, ctx)
        """(B,), after label dropout"""
        self.x = interpolate(batch.x0, batch.x1, self.t)
        """(B, C, H, W)"""

    @cached_property
    def v(self) -> Tensor:
        """Velocity to follow: the guided teacher's, or x1 - x0 without a teacher; (B, C, H, W)."""
        if self._ctx.teacher is None:
            return self._batch.x1 - self._batch.x0
        return self._ctx.teacher(self.x, self.t, self.y)

    def velocity(self, rows: Tensor) -> Tensor:
        """``v`` of the samples ``rows`` (N,) alone, so that the others cost nothing; (N, C, H, W)."""
        if self._ctx.teacher is None:
            return (self._batch.x1 - self._batch.x0)[rows]
        return self._ctx.teacher(self.x[rows], self.t[rows], self.y[rows])


def sample_path(law: TimeDistribution, batch: Batch, ctx: Context) -> PathSample:
    """The sample at the step's time t, the same in all updates of a step.

    It is kept in the context, so that updates that share it ask the teacher once.
    """
    held = ctx.memo.get("point")
    if held is None or held[0] is not law or held[1] is not batch:
        held = ctx.memo["point"] = law, batch, PathSample(batch, ctx, sample_times(law, ctx.rng, "t"))
    point: PathSample = held[2]
    return point
