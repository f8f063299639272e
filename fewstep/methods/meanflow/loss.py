"""MeanFlow (arXiv 2505.13447): the average velocity between any two times.

The MeanFlow identity (Eq. 6) turned into a regression (Eqs. 9 and 10), for t <= s:

    F_tgt = sg(v + (s - t) dF),   dF = JVP(F; (x_t, t, s); (v, 1, 0)),
    L     = e / sg(e + c)^p,      e = mean (F - F_tgt)^2

t and s are two draws from ``times``, sorted; a share ``flow_matching_fraction`` of the rows has s = t, where
the objective is flow matching. Rows that lose their label are among these. v is x1 - x0, or the guided
teacher velocity under a teacher. At times in ``guided``, and where the label was not dropped, the network may
guide itself: v is then replaced by

    omega v + kappa F(x_t, t, t, y) + (1 - omega - kappa) F(x_t, t, t, null),

without gradient, an effective scale of omega / (1 - kappa). kappa = 0 and omega > 1 is the plain form of
guidance, at scale omega.

Mapping: the paper has noise at tau = 1 and v = e - x. With t = 1 - tau, s = 1 - r the average velocity
changes sign, F(x, t, s) = -u(z, r, tau), and u = v - (tau - r) du becomes F = v + (s - t) dF.

Deviations from the paper:

* e is the mean over C, H, W, not the sum, as in the reproduction within FACM; c = 1e-3 acts on the mean.
* By default guidance comes from a frozen teacher's velocity, not from mixing the student's own outputs.
* The default times are those of the reproduction; the paper has logit-normal(-0.4, 1.0) of tau, which is
  logit-normal with mean 0.4 here. ``flow_matching_fraction`` is drawn row by row.
* The network is conditioned on t and s, not on tau and tau - r.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import adaptive, consistency_residual, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims
from ...core.path_sample import PathSample, without_interval
from ...core.precision import upcast
from ...core.times import sample_interval
from .params import MeanFlowParams


class MeanFlow(Method):
    params: MeanFlowParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        t, s = sample_interval(p.times, ctx.rng, without_interval(ctx, p.flow_matching_fraction))
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        gap = s - at.t
        v = self._velocity(net, at, ctx.null)
        directions = (append_dims(gap, at.x) * v.to(at.x.dtype), gap, torch.zeros_like(gap))
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        g = consistency_residual(F, v, dF_scaled)
        e = mean_square(F, F.detach() - g)
        loss = adaptive(e, p.norm_power, p.norm_constant).mean()
        return LossOutput(loss, {"loss_mf": loss.detach(), "residual_mf": rms(g).mean()})

    @torch.no_grad()
    def _velocity(self, net: nn.Module, at: PathSample, null: int) -> Tensor:
        """v, under the network's own guidance if that is asked for; (B, C, H, W)."""
        p = self.params
        if p.omega == 1 and p.kappa == 0:
            return at.v
        v, times = upcast(at.v), (at.x, at.t, at.t)
        mixed = p.omega * v + (1 - p.omega - p.kappa) * upcast(net(*times, torch.full_like(at.y, null)))
        if p.kappa:
            mixed = mixed + p.kappa * upcast(net(*times, at.y))
        inside = (at.t >= p.guided[0]) & (at.t <= p.guided[1]) & (at.y != null)
        return mixed.where(append_dims(inside, v), v)
