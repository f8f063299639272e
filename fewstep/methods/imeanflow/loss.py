"""Improved MeanFlow, iMF (arXiv 2512.02012, section 4): the MeanFlow identity as a loss on the velocity.

The identity F = v + (s - t) dF, solved for v, makes of the average velocity F a prediction of the velocity,
which is regressed to the velocity itself instead of to a target that contains the network:

    V   = F - (s - t) sg(dF),   dF = JVP(F; (x_t, t, s); (sg(u), 1, 0)),   u = F(x_t, t, t),
    L_u = e / sg(e + c)^p,   e = mean (V - v)^2,
    L_v = the same of u in place of V.

The derivative is taken along the network's own velocity u, as V would be at sampling time: along x1 - x0,
MeanFlow's choice, V would see the noise that it is to predict. t and s are two draws from ``times``, sorted;
a share ``flow_matching_fraction`` of the rows has s = t, among them those that lose their label.

Mapping: the paper has noise at tau = 1 and v = e - x. With t = 1 - tau, s = 1 - r the average velocity
changes sign, F(x, t, s) = -u(z, r, tau), and V = u + (tau - r) du becomes F - (s - t) dF.

Deviations from the paper:

* u is F(x_t, t, t) of the same network, or the velocity of a backbone with two outputs, whose heads are
  then the last layer only; the paper's auxiliary head has blocks of its own.
* Guidance is not an input. The paper draws the scale and the interval of guidance for every sample and embeds
  them, which changes the network; here v is a frozen teacher's guided velocity, at one scale, or x1 - x0.
* The network is conditioned on t and s by adaLN, not on tau - r alone by tokens in its context.
* e is the mean over C, H, W, not the sum: c = 1e-2 of the released implementation is divided by their number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.heads import average_velocity, merged
from ...core.losses import adaptive, mean_square
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims
from ...core.path_sample import PathSample, without_interval
from ...core.times import sample_interval
from .params import IMeanFlowParams


class IMeanFlow(Method):
    params: IMeanFlowParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        t, s = sample_interval(p.times, ctx.rng, without_interval(ctx, p.flow_matching_fraction))
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        gap = s - at.t
        own = average_velocity(net, at.x, at.t, at.t, at.y)
        along = append_dims(gap, at.x) * own.detach().to(at.x.dtype)
        both = ctx.jvp(net, (at.x, at.t, s), (along, gap, torch.zeros_like(gap)), at.y)
        # The derivative carries no graph: this is the paper's stop-gradient.
        F, dF_scaled = (merged(output, at.t, s) for output in both)
        mf, fm = self._distance(F - dF_scaled, at.v), self._distance(own, at.v)
        logs = {
            "loss_mf": mf.mean().detach(),
            "loss_fm": fm.mean().detach(),
            "residual_mf": mean_square(F.detach() - dF_scaled, at.v).sqrt().mean(),
        }
        return LossOutput((mf + fm).mean(), logs)

    def _distance(self, prediction: Tensor, v: Tensor) -> Tensor:
        return adaptive(mean_square(prediction, v), self.params.norm_power, self.params.norm_constant)
