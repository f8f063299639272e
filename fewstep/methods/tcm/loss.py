"""TCM, truncated consistency models (arXiv 2410.14895, section 3), with stage 1 as Easy Consistency Tuning.

Stage 1 trains consistency at all times, between t and r > t nearer to the data (arXiv 2406.14548):

    L_c = (1 + sigma^-2) d(f(x_t, t, 1), sg f(x_r, r, 1)),   x_r = x_t + (r - t) v,
    sigma(r) = sigma(t) (1 - n q^-(floor(k / double) + 1)),   n = 1 + 8 sigmoid(-sigma(t) / 2),
    d = sqrt(e + c^2) - c,   e the mean square of the difference,   sigma(t) = (1 - t) / t

in training step k; the shrinking share is not let fall below ``least``, where stage 2 goes on: the release
resumes the count of stage 1. Stage 2 (``boundary`` t') trains only 0 <= t <= t', beside the noise, and takes
f(x_r, r, 1) from the frozen network of stage 1 where r > t'. A share ``boundary_share`` of its rows sits at
t' itself, which pins the map to that of stage 1:

    L = L_c + boundary_weight L_b,   L_b = L_c at t = t'

The other times of stage 2 have ln(sigma / sigma(t')) of a heavy-tailed law that is densest at t'.

Mapping: the paper has x = x1 + s x0 with data of deviation 1/2. Beside data of unit variance the noise level
is sigma = 2 s, and t = 1 / (1 + sigma), x_t = 2 t x. So its s' = 1 is t' = 1/3, its mean -0.8 of ln s the
mean 0.8 - ln 2 = 0.107 of t's logit, its n a function of sigma / 2, its levels up to 80 levels up to 160, and
c, beside distances, is doubled.

Deviations from the paper:

* f = x + (1 - t) F with the velocity network, and data of unit variance: 1 + sigma^-2 is 1 / c_out^2.
* Student's t with 0.01 degrees of freedom is taken at its limit, whose quantile function is a sinh.
* ``direction: teacher`` follows the guided teacher velocity in stage 1; the paper has v = x1 - x0 in both.
* The distance is divided by sqrt(D), D = C H W, and so is c, 2 x 0.06: 0.00108 beside a root mean square.
* The learning rate does not decay with the inverse root of the step.
* A stage-2 network is not replaced by that of stage 1 in sampling: ask it at times up to t' only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.losses import mean_square, pseudo_huber, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.rng import Rows
from ...core.times import HIGHEST, LOWEST, sample_times
from .params import TCMParams


class TCM(Method):
    params: TCMParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        pinned = None if p.boundary is None else ctx.rng.spread(p.boundary_share)
        t = self._times(ctx, pinned)
        at = PathSample(batch, ctx, t)
        v = at.v if p.direction == "teacher" else batch.x1 - batch.x0
        r, end = self.nearer(at.t, ctx.step), torch.ones_like(at.t)
        own = flow_map(at.x, at.t, end, upcast(net(at.x, at.t, end, at.y)))
        with torch.no_grad():
            x_r = (at.x + append_dims(r - at.t, at.x) * v).to(at.x.dtype)
            target = flow_map(x_r, r, end, self._nearer_data(net, x_r, r, at.y, pinned, ctx))
        e = mean_square(own, target)
        noise = (1 - at.t) / at.t
        loss = (1 + noise**-2) * pseudo_huber(e, p.huber)
        if pinned is not None:
            # Two means, one over each kind of row.
            inner, edge = 1 / (1 - p.boundary_share), p.boundary_weight / p.boundary_share
            loss = loss * torch.where(pinned.mask, edge, inner)
        residual = (rms((own - target).detach()) / (r - at.t)).mean()
        return LossOutput(loss.mean(), {"loss_tcm": loss.mean().detach(), "residual_tcm": residual})

    def nearer(self, t: Tensor, step: Tensor) -> Tensor:
        """r, (B,): the time of a noise level smaller by the share of this training step ()."""
        p, noise = self.params, (1 - t) / t
        share: Tensor | float = p.least
        if p.boundary is None:
            share = (p.q ** -(step // p.double + 1)).clamp(min=p.least)
        left = (1 - share * (1 + 8 * torch.sigmoid(-noise / 2))).clamp(min=0)
        return 1 / (1 + left * noise)

    def _times(self, ctx: Context, pinned: Rows | None) -> Tensor:
        """t, (B,); the rows ``pinned`` sit at the boundary."""
        p = self.params
        if p.boundary is None or pinned is None:
            return sample_times(p.times, ctx.rng, "t").clamp(1 / (1 + HIGHEST), 1 / (1 + LOWEST))
        level = (1 - p.boundary) / p.boundary
        widest = math.asinh(math.log(HIGHEST / level) / p.tail)
        level = level * torch.exp(p.tail * torch.sinh(widest * ctx.rng.uniform("t")))
        return torch.where(pinned.mask, p.boundary, 1 / (1 + level))

    def _nearer_data(
        self, net: nn.Module, x: Tensor, r: Tensor, y: Tensor, pinned: Rows | None, ctx: Context
    ) -> Tensor:
        """F(x, r, 1), of the frozen network beyond the boundary; (B, C, H, W)."""
        end, boundary = torch.ones_like(r), self.params.boundary
        if boundary is None or pinned is None:
            return upcast(net(x, r, end, y))
        if ctx.teacher_net is None:
            raise ValueError("tcm with a boundary needs the network of stage 1 as ctx.teacher_net")
        # Rows at the boundary end beyond it; of the others some do.
        F, rows = upcast(ctx.teacher_net(x, r, end, y)), pinned.outside
        own = upcast(net(x[rows], r[rows], end[rows], y[rows]))
        return F.index_copy(0, rows, F[rows].where(append_dims(r[rows] > boundary, own), own))
