"""AYF, Align Your Flow (arXiv 2506.14603, section 3): continuous-time distillation of flow maps.

For t <= s, with the gap s - t drawn from ``gaps`` and t uniform on what is left, one of two residuals:

    emd   g = F - v(x_t, t) - rho (s - t) dF,   dF = JVP(F; (x_t, t, s); (v, 1, 0))     Eulerian
    lmd   g = F - v(f, s) + (s - t) dF,         dF = JVP(F; (x_t, t, s); (0, 0, 1))     Lagrangian

where f = f(x_t, t, s) is the network's own jump, without gradient, and F = sg(F) throughout. The first
holds the arrival still while the start moves along the ODE, the second makes the arrival move along the
ODE while the end does. Both are 0 at the exact flow map. Then

    g <- g / (rms(g) + c),   L = mean (F - (sg(F) - g))^2.

emd warms its tangent up: rho grows from 0 to ``rho`` over ``warmup`` steps. At s = t it is flow matching,
at s = 1 a consistency model.

Mapping: the paper has noise at tau = 1 and f(x, tau, s) = x + (s - tau) F, s <= tau. With all times taken
from 1 the network changes sign; the law of the gap stays, and uniform t stays uniform.

Deviations from the paper:

* No autoguidance: v is the frozen teacher's velocity under classifier-free guidance at one scale. Print
  guides by a weaker network and gives the student the scale, drawn from [1, 3], as an input.
* No adversarial fine-tuning, and no gamma-sampling: the samplers are those of evaluation/samplers.py.
* The gradient is taken with respect to F, not to f = x + (s - t) F, a matter of the free weight.
* g is divided by its root mean square plus c, so that c does not depend on the dimension; the paper has the
  norm.
* lmd gets the same normalisation, and no warm-up.
* Without a teacher v is x1 - x0, and at the arrival the network's own velocity F(f, s, s).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import consistency_residual, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.times import sample_times
from .params import AYFParams


class AYF(Method):
    params: AYFParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        gap = sample_times(p.gaps, ctx.rng, "gap")
        at = PathSample(batch, ctx, (1 - gap) * ctx.rng.uniform("t"))
        gap = gap.to(at.t.dtype)
        F, g = (self._eulerian if p.objective == "emd" else self._lagrangian)(net, at, gap, ctx)
        residual = rms(g)
        g = g / (append_dims(residual, g) + p.constant)
        loss = mean_square(F, upcast(F.detach()) - g).mean()
        return LossOutput(loss, {"loss_ayf": loss.detach(), "residual_ayf": residual.mean()})

    def _eulerian(self, net: nn.Module, at: PathSample, gap: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """F and its residual at the left end."""
        p = self.params
        directions = (append_dims(gap, at.x) * at.v, gap, torch.zeros_like(gap))
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, at.t + gap), directions, at.y)
        return F, consistency_residual(F, at.v, p.rho * ctx.warmed_up(p.warmup) * dF_scaled)

    def _lagrangian(self, net: nn.Module, at: PathSample, gap: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """F and its residual at the right end."""
        s = at.t + gap
        directions = (torch.zeros_like(at.x), torch.zeros_like(gap), gap)
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        landed = flow_map(at.x, at.t, s, upcast(F.detach()))
        with torch.no_grad():
            there = ctx.teacher(landed, s, at.y) if ctx.teacher else upcast(net(landed, s, s, at.y))
        return F, consistency_residual(F, there, -dF_scaled)
