"""FreeFlow, flow maps distilled without data (arXiv 2511.19428, Eqs. 7 to 11): noise and teacher alone.

Every row starts at the noise x0, t = 0. Most rows learn to move with the teacher's velocity along their own
path (prediction):

    g = F + s dF - v(f, s),   f = x0 + s F,   F = F(x0, 0, s),   dF = JVP(F; (x0, 0, s); (0, 0, 1)).

A ``share`` of them corrects what one step makes, x_f = x0 + F(x0, 0, 1), at x_r = r x_f + (1 - r) n with
new noise n: there the velocity v_N of noised samples of the student must be the teacher's,

    g = v_N(x_r, r) - v(x_r, r),    v_N <- (v_N(x_r, r) - (x_f - n))^2,

which is the gradient of an integrated KL divergence. For both,

    L = e / sg(e + c)^k,   e = mean (F - (sg(F) - g))^2.

Mapping: the paper has noise at tau = 1, and s is its integration length delta; its u and F point to the data.

Deviations from the paper:

* v_N is a network of its own in the paper, trained online. Here it is the student at the time condition
  2 - r, as TwinFlow (arXiv 2512.05150) has its fake velocity.
* The paper scales the correction by alpha E|g_prediction| / E|g_correction|, means over the batch. Rows do
  not know of each other here: both are weighted by their own size, and ``correction`` is alpha.
* The teacher is guided alike in both terms; the paper's correction has a narrower interval.
* Laws of s and r and c are chosen here; the paper names r's law, logit-normal towards the noise.
* Labels are those of the batch, whose images are not looked at.
* Without a teacher (which plans refuse) v is the student's own velocity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import adaptive, consistency_residual, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import flow_map, interpolate
from ...core.precision import upcast
from ...core.times import sample_times
from .params import FreeFlowParams


class FreeFlow(Method):
    params: FreeFlowParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        rows = ctx.rng.spread(p.share)
        x, y = batch.x0, batch.y
        t = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        s = sample_times(p.lengths, ctx.rng, "s").to(x.dtype).masked_fill(rows.mask, 1)
        F, dF_scaled = ctx.jvp(net, (x, t, s), (torch.zeros_like(x), t, s), y)
        landed = flow_map(x, t, s, upcast(F.detach())).to(x.dtype)
        g = torch.empty_like(upcast(F.detach()))
        moving, ending = rows.outside, rows.inside
        there = self._teacher(net, landed[moving], s[moving], y[moving], ctx)
        g[moving] = consistency_residual(F[moving], there, -dF_scaled[moving])
        total = F.new_zeros((), dtype=g.dtype)
        logs = {}
        if len(ending):
            online, g[ending] = self._correction(net, landed[ending], y[ending], ending, ctx)
            # Means over all rows, so that parts of a batch average to the whole however they are cut.
            total = online.sum() / len(x)
            logs["loss_online"] = total.detach()
        e = adaptive(mean_square(F, upcast(F.detach()) - g), p.norm_power, p.norm_constant)
        e = torch.where(rows.mask, p.correction * e, e)
        size = rms(g)
        logs["residual_prediction"] = size.masked_fill(rows.mask, 0).mean()
        logs["residual_correction"] = size.where(rows.mask, 0).mean()
        return LossOutput(total + e.mean(), logs)

    def _correction(
        self, net: nn.Module, made: Tensor, y: Tensor, rows: Tensor, ctx: Context
    ) -> tuple[Tensor, Tensor]:
        """Loss of v_N (N,), and v_N - v (N, C, H, W), at noised samples of the student."""
        noise = ctx.rng.normal_like("noise", made)[rows]
        r = sample_times(self.params.noise_levels, ctx.rng, "r")[rows].to(made.dtype)
        x = interpolate(noise, made, r)
        v_noised = net(x, 2 - r, 2 - r, y)
        g = upcast(v_noised.detach()) - self._teacher(net, x, r, y, ctx)
        return mean_square(v_noised, upcast(made) - upcast(noise)), g

    @torch.no_grad()
    def _teacher(self, net: nn.Module, x: Tensor, t: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return upcast(ctx.teacher(x, t, y) if ctx.teacher is not None else net(x, t, t, y))
