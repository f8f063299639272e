"""Continuous-time consistency distillation on the straight path, without an anchor.

The consistency loss alone (DE-CM, arXiv 2602.10764, Eqs. 7, 10 and 11; the row "CD only" of its Table 3):

    g = sg(F) - v - (1 - t) dF,   dF = JVP(F; (x_t, t, 1); (v, 1, 0)),
    L = beta(t) e / sg(e + c)^p,  e = mean (F - (sg(F) - alpha(t) clamp(g)))^2

with v the guided teacher velocity, or x1 - x0 without a teacher; g = 0 at the exact flow map.

Mapping: none needed, noise is at t = 0 in the paper too. The limit of the discrete loss goes back to Song
et al. (arXiv 2303.01469), whose time runs the other way.

Deviations from the paper:

* w'(t) is a free weighting there: alpha(t) = 1 - t^p with p = 1/2, FACM's, which meets the paper's
  (1 - t) / 2 near t = 1.
* The clamp of g to [-1, 1] and the weight beta = cos(pi t / 2) are FACM's; DE-CM mentions neither.
"""

from __future__ import annotations

from torch import nn

from ...core.losses import consistency_loss
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path_sample import sample_path
from .params import CDParams


class CD(Method):
    params: CDParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        loss, logs = consistency_loss(net, sample_path(self.params.times, batch, ctx), ctx, self.params)
        return LossOutput(loss.mean(), logs)
