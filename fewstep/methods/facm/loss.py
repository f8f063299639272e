"""FACM, flow-anchored consistency models (arXiv 2507.03738; its two losses are DE-CM's Eqs. 10 and 17).

On the same (x_t, t, y), in one update,

    L_cm = beta(t) e / sg(e + c)^p,  e = mean (F - (sg(F) - alpha(t) clamp(g)))^2,
           g = sg(F) - v - (1 - t) dF,  dF = JVP(F; (x_t, t, 1); (v, 1, 0)),
           alpha = 1 - t^(1/2),  beta = cos(pi t / 2)
    L_fm = mean (F_fm - v)^2 + mean_HW (1 - cos_C(F_fm, v))

where v is the guided teacher velocity (x1 - x0 without a teacher) and F_fm is the network on the
anchor's condition: time 2 - t (``expanded``), or target time s = t (``target``).

Mapping: none needed; noise is at t = 0 in the paper too.

Deviations from the paper:

* The clamp of g, alpha, beta and the adaptive weight (p = 1/2, c = 1e-3, e a mean over C, H, W) follow
  the released implementation where the text leaves them open.
* On the expanded condition a network with a target time is given s = 2 - t as well.
* A non-finite loss is not replaced by zero: the trainer counts it, skips it, and stops in the end.
* Without a teacher v is x1 - x0; the variant guided by the student's own unconditional output is not here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ...core.losses import consistency_loss, velocity_loss
from ...core.method import Batch, Context, Loss, LossOutput, Method, SummedLoss
from ...core.path_sample import sample_path
from .params import FACMParams


class FACM(Method):
    params: FACMParams

    def updates(self, step: int) -> Sequence[Loss]:
        return (SummedLoss("loss", self.consistency, self.anchor),)

    def consistency(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_cm."""
        loss, logs = consistency_loss(net, sample_path(self.params.times, batch, ctx), ctx, self.params)
        return LossOutput(loss.mean(), logs)

    def anchor(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_fm."""
        at = sample_path(self.params.times, batch, ctx)
        condition = 2 - at.t if self.params.anchor == "expanded" else at.t
        v = at.v  # before there is a graph to hold
        loss = velocity_loss(net(at.x, condition, condition, at.y), v, cosine=True).mean()
        return LossOutput(loss, {"loss_fm": loss.detach()})
