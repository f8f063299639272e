"""Flow matching: regress the velocity of the straight path (Lipman et al., arXiv 2210.02747, Eq. 23).

    L = mean (F(x_t, t, s = t) - v)^2  [ + mean_HW (1 - cos_C(F, v)) ],   v = x1 - x0

with a share of the labels replaced by the null label, so that the same network can be guided.
Under a teacher v is its guided velocity and no label is dropped: row (c) of DE-CM's Table 3. With ``data``
the teacher only lends its weights, to be tuned on other data or classes.

Mapping: their optimal-transport path with sigma_min = 0 is x_t = t x1 + (1 - t) x0 itself.

``expanded`` makes the two-interval teacher of FACM (arXiv 2507.03738, stage 1): a row keeps time t or
is given 2 - t, with even odds, so that conditions on [0, 1] are free for the consistency task later.

Deviations from the paper:

* LightningDiT's logit-normal training times are a matter of ``times``, uniform by default, as FACM's are.
* FACM's network has no target time. One that has is given s = t, and s = 2 - t on the expanded half.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ...core.losses import velocity_loss
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path_sample import sample_path
from .params import FlowMatchingParams


class FlowMatching(Method):
    params: FlowMatchingParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        if self.params.data:
            ctx = replace(ctx, teacher=None)
        at = sample_path(self.params.times, batch, ctx)
        condition = at.t
        if self.params.expanded:
            condition = torch.where(ctx.rng.uniform("expanded") < 0.5, 2 - at.t, at.t)
        F = net(at.x, condition, condition, at.y)
        loss = velocity_loss(F, at.v, self.params.cosine).mean()
        return LossOutput(loss, {"loss_fm": loss.detach()})
