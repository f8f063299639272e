"""Flow-map self-distillation (arXiv 2505.18825, section 3): its own velocity teaches the flow map.

The velocity that a flow map implies is F(x, t, t) (the tangent condition). A share ``flow_matching_fraction``
of the rows has s = t and learns the velocity v there; the others follow one of three characterisations of the
flow map, of which only F has a gradient:

    lsd   g = F + (s - t) dF - F(f, s, s),    dF = JVP(F; (x_t, t, s); (0, 0, 1))    Lagrangian
    esd   g = F - u - (s - t) dF,             dF = JVP(F; (x_t, t, s); (u, 1, 0))    Eulerian
    psd   g = F - c F(x_t, t, m) - (1 - c) F(x_m, m, s)                               progressive

with f = x_t + (s - t) F, u = F(x_t, t, t), m = t + c (s - t), x_m = x_t + (m - t) F(x_t, t, m), and c = 1/2
or c ~ U(0, 1) (``middle``). All are 0 at the exact flow map, and L = mean (F - (sg(F) - g))^2, or
mean (F - v)^2 where s = t.

Mapping: none needed for the straight path, noise at t = 0; the paper's (s, t) are (t, s) here.

Deviations from the paper:

* The derivative and all that g holds beside F carry no gradient; in the paper that of lsd does.
* psd is written for the average velocity, and so divided by (s - t)^2.
* The share of rows with s = t and the law of the times are chosen here; no weight is learned.
* v is a frozen teacher's guided velocity, or x1 - x0 as in the paper.
* psd with a uniform c differs from SplitMeanFlow in the constants alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import consistency_residual, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.times import sample_interval
from .params import FMSDParams


class FMSD(Method):
    params: FMSDParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        rows = ctx.rng.spread(p.flow_matching_fraction)
        t, s = sample_interval(p.times, ctx.rng, rows.mask)
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        F, g = {"lsd": self._lagrangian, "esd": self._eulerian, "psd": self._progressive}[p.objective](
            net, at, s, ctx
        )
        still = append_dims(rows.mask, F)
        g = (upcast(F.detach()) - upcast(at.v)).where(still, g)
        e = mean_square(F, upcast(F.detach()) - g)
        logs = {
            "loss_fm": e.detach().where(rows.mask, 0).mean(),
            "loss_sd": e.detach().masked_fill(rows.mask, 0).mean(),
            "residual_sd": rms(g).masked_fill(rows.mask, 0).mean(),
        }
        return LossOutput(e.mean(), logs)

    def _lagrangian(self, net: nn.Module, at: PathSample, s: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        gap = s - at.t
        directions = (torch.zeros_like(at.x), torch.zeros_like(gap), gap)
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        with torch.no_grad():
            landed = flow_map(at.x, at.t, s, upcast(F.detach())).to(at.x.dtype)
            there = net(landed, s, s, at.y)
        return F, consistency_residual(F, there, -dF_scaled)

    def _eulerian(self, net: nn.Module, at: PathSample, s: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        gap = s - at.t
        with torch.no_grad():
            own = upcast(net(at.x, at.t, at.t, at.y))
        directions = (append_dims(gap, at.x) * own.to(at.x.dtype), gap, torch.zeros_like(gap))
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        return F, consistency_residual(F, own, dF_scaled)

    def _progressive(self, net: nn.Module, at: PathSample, s: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        c = torch.full_like(s, 0.5)
        if self.params.middle == "uniform":
            c = ctx.rng.uniform("middle").to(s.dtype)
        m = at.t + c * (s - at.t)
        F = net(at.x, at.t, s, at.y)
        with torch.no_grad():
            first = upcast(net(at.x, at.t, m, at.y))
            second = upcast(net(flow_map(at.x, at.t, m, first).to(at.x.dtype), m, s, at.y))
        c = append_dims(c, F)
        return F, upcast(F.detach()) - c * first - (1 - c) * second
