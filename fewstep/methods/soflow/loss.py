"""SoFlow, solution flow models (arXiv 2512.15657; objective and constants as released): no derivative.

A share ``flow_matching_fraction`` of the rows learns the velocity at s = t. On the others t < l < s
lie on one solution of the ODE, l a share ``ratio`` of the way from t to s, and both ends must lead to the
same place (the limit of section 3 of arXiv 2303.01469 for any s):

    x_l   = x_t + (l - t) v,
    delta = (f(x_t, t, s) - sg f(x_l, l, s)) / (l - t),
    L     = e / (2 sg(e + c)),   e = mean (F - (sg(F) - delta))^2

on those, and e / sg(e + c) with e = mean (F - v)^2 on the rows with s = t. The ratio falls
exponentially from ``ratio[0]`` to ``ratio[1]`` over the training. delta is 0 at the exact flow map up to
a term of order l - t, the error of the one Euler step.

Mapping: the paper has noise at tau = 1 and f(x, tau, s) = x + (s - tau) N, s < l < tau. With all times
taken from 1 the network changes sign, F = -N, and so do the means of the logit-normal laws.

Deviations from the paper:

* The consistency loss is released as the inner product of N with the weighted difference, whose gradient
  is that of the regression above; its value is not 0 at the solution.
* v is a frozen teacher's guided velocity, or x1 - x0. The release instead mixes the velocity of the pair with
  the network's own guided one (scale 3, mixture 0.25), weakened near the noise.
* Which of the two losses a row gets is fixed, evenly over the batch; the release cuts it at a fixed place.
* Each end of an interval is embedded as the backbone does it; the release adds an embedder of s to DiT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import adaptive, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.times import sample_times
from .params import SoFlowParams

SHORTEST = 1e-4
"""Least distance of t from l, from s and from the data, as released; l is s where that is as near."""


class SoFlow(Method):
    params: SoFlowParams

    def ratio(self, ctx: Context) -> Tensor:
        """How far l lies on the way from t to s in this step, ()."""
        first, last = self.params.ratio
        return first * (last / first) ** (ctx.step / ctx.steps)

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        rows = ctx.rng.spread(p.flow_matching_fraction)
        still = rows.mask
        t = sample_times(p.consistency_times, ctx.rng, "t").clamp(max=1 - SHORTEST)
        s = torch.maximum(sample_times(p.end_times, ctx.rng, "s"), t + SHORTEST)
        t = torch.where(still, sample_times(p.times, ctx.rng, "velocity"), t)
        at = PathSample(batch, ctx, t)
        s = torch.where(still, t, s).to(at.t.dtype)
        F = net(at.x, at.t, s, at.y)
        step = self._step(net, at, s, upcast(F.detach()), rows.outside, self.ratio(ctx))
        e = adaptive(mean_square(F, upcast(F.detach()) - step), p.norm_power, p.norm_constant)
        loss = torch.where(still, e, e / 2).mean()
        residual = rms(step).masked_fill(still, 0).sum() / max(len(rows.outside), 1)
        return LossOutput(loss, {"loss_sof": loss.detach(), "residual_sof": residual})

    @torch.no_grad()
    def _step(
        self, net: nn.Module, at: PathSample, s: Tensor, own: Tensor, rows: Tensor, ratio: Tensor
    ) -> Tensor:
        """What is taken off F: F - v where s = t, delta in the other ``rows`` (N,); (B, C, H, W)."""
        step = own - upcast(at.v)
        if len(rows):
            x, t, s, y = at.x[rows], at.t[rows], s[rows], at.y[rows]
            shift = (ratio * (s - t)).clamp(min=SHORTEST)
            x_l = (x + append_dims(shift, x) * at.v[rows]).to(x.dtype)
            there = flow_map(x, t, s, own[rows])
            behind = flow_map(upcast(x_l), t + shift, s, upcast(net(x_l, t + shift, s, y)))
            step[rows] = (there - behind) / append_dims(shift, x)
        return step
