"""Shortcut models (arXiv 2410.12557, Eqs. 4 and 5, Algorithm 1): two jumps of size d make one of 2d.

A share ``bootstrap`` of the rows learns jumps of size d = 1, 1/2, ..., 2/M from two of half that size,
the other rows the velocity, which stands for the smallest jump, 1/M:

    F(x_t, t, t + d) <- (b1 + b2) / 2,   b1 = F^(x_t, t, t + d/2),   b2 = F^(x_t + (d/2) b1, t + d/2, t + d)
    F(x_t, t, t)     <- v

with mean squares, and with F^ the network's moving average, without gradient. Times lie on the grid of their
jump. Sizes are even, but for a share ``longest`` of these rows, which has d = 1: the release puts there what
its 32 rows leave after dividing by seven sizes. Rows that learn jumps keep their labels. Without a teacher v
is x1 - x0, and F^ is guided (scale ``guidance``) where it takes the smallest jumps, so that guidance spreads
from there to the longer ones; under a teacher v is its guided velocity, and F^ is not guided once more.

Mapping: noise is at t = 0 in the paper too; the paper conditions on the size d, here on the end t + d.

Deviations from the paper:

* The smallest jump is conditioned on s = t, as d = 0 of Eq. 5; the release gives both one index.
* Which rows bootstrap is fixed, evenly over the batch; their sizes are drawn row by row, with the release's
  fixed shares as odds.
* The release's path ends at 1e-5 of noise, ours at the data.
* ``clamp``, which bounds the middle state and the target, is in the release only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...config.settings import Guidance
from ...core.guidance import differences
from ...core.losses import bounded, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from .params import ShortcutParams


class Shortcut(Method):
    params: ShortcutParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        rows = ctx.rng.spread(p.bootstrap)
        long = rows.mask
        jumps = 2 ** ctx.rng.integers("size", p.grid.bit_length() - 1)  # 1, 2, ..., M / 2
        jumps = jumps.masked_fill(ctx.rng.uniform("longest") < p.longest, 1)
        jumps = torch.where(long, jumps, torch.full_like(jumps, p.grid))
        t = (ctx.rng.uniform("t") * jumps).floor() / jumps
        at = PathSample(batch, ctx, t)
        at.y = torch.where(long, batch.y, at.y)
        s = torch.where(long, ((t * jumps).round() + 1) / jumps, t).to(at.t.dtype)
        target = torch.empty_like(upcast(at.x))
        if len(rows.outside):
            target[rows.outside] = upcast(at.velocity(rows.outside))
        if len(rows.inside):
            target[rows.inside] = self._two_jumps(at, rows.inside, s, jumps, ctx)
        F = net(at.x, at.t, s, at.y)
        e = mean_square(F, target)
        loss = e.mean()
        gap = rms(upcast(F.detach()) - target)
        logs = {"loss_shortcut": loss.detach()}
        for name, part in {"velocity": rows.outside, "residual": rows.inside}.items():
            logs[f"{name}_shortcut"] = gap[part].sum() / max(len(part), 1)
        return LossOutput(loss, logs)

    @torch.no_grad()
    def _two_jumps(self, at: PathSample, rows: Tensor, s: Tensor, jumps: Tensor, ctx: Context) -> Tensor:
        """Average velocity from t to s of two jumps by the moving average, of ``rows`` (N,)."""
        x, t, s, y = at.x[rows], at.t[rows], s[rows], at.y[rows]
        middle = (t + s) / 2
        smallest = 2 * jumps[rows] == self.params.grid
        first = self._jump(x, t, middle, y, smallest, ctx)
        landed = bounded(flow_map(upcast(x), t, middle, first), self.params.clamp).to(x.dtype)
        second = self._jump(landed, middle, s, y, smallest, ctx)
        return bounded((first + second) / 2, self.params.clamp)

    def _jump(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor, smallest: Tensor, ctx: Context) -> Tensor:
        """F^ from t to s; in rows ``smallest`` (N,) the velocity, guided if there is no teacher."""
        if ctx.target is None:
            raise ValueError("shortcut needs the moving average of Shortcut.target_decay as ctx.target")
        s = torch.where(smallest, t, s)
        scale = 1.0 if ctx.teacher is not None else self.params.guidance
        if scale == 1:
            return upcast(ctx.target(x, t, s, y))
        F, difference = differences(ctx.target, Guidance(scale=scale), ctx.null, x, t, s, y)
        return F.add(difference.where(append_dims(smallest, x), 0), alpha=scale - 1)
