"""sCM, simplified continuous-time consistency (arXiv 2410.11081, sections 3 and 4), on the straight path.

As re-run by FACM and DE-CM, without the trigonometric path:

    g = cos(pi t / 2) (sg(F) - v - rho (1 - t) dF),   dF = JVP(F; (x_t, t, 1); (v, 1, 0)),
    g <- g / (rms(g) + c),   L = exp(-w(t)) e + w(t),   e = mean (F - (sg(F) - g))^2

with the tangent warmed up, rho = min(1, step / warmup), and the log-variance w(t) learned along.
v is the guided teacher velocity (sCD), or x1 - x0 without a teacher (sCT).

Mapping: the paper has x_a = cos(a) x + sin(a) z, a in [0, pi / 2], with unit data scale. Then t = cos(a) /
(cos(a) + sin(a)) and x_t = x_a / (cos(a) + sin(a)); cos(a) of the tangent becomes the weight cos(pi t / 2) up
to the time law. The paper's tan(a) is e^n / sigma_d with data of deviation sigma_d = 1/2; the re-run has the
same law of n without that factor.

Deviations from the paper:

* The path is straight, the network predicts the velocity, and the term of the tangent that the
  trigonometric path adds (x_a itself) has no counterpart.
* g is normalised by its root mean square, so c = 0.1 does not depend on the dimension; the paper adds c
  to the norm.
* w(t) is one linear layer over sinusoids of t that starts at zero; the paper puts it on the time embedding.
* w enters with the opposite sign to the paper's weight e^w, a matter of its name only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.losses import consistency_residual, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims
from ...core.path_sample import sample_path
from .params import SCMParams


class LogVariance(nn.Module):
    """w(t), (B,) -> (B,): linear in 1, sin and cos of k pi t, zero at the start."""

    def __init__(self, frequencies: int = 8):
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.arange(1, frequencies + 1), persistent=False)
        self.linear = nn.Linear(2 * frequencies, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.to(self.linear.weight.dtype)[:, None] * self.frequencies
        return self.linear(torch.cat([angles.sin(), angles.cos()], dim=1)).squeeze(1)


class SCM(Method):
    params: SCMParams

    def extra(self) -> nn.Module | None:
        # nn.Linear draws from the global generator before it is zeroed; leave that as it was.
        with torch.random.fork_rng(devices=[]):
            return LogVariance() if self.params.learned_weight else None

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        at = sample_path(p.times, batch, ctx)
        gap = 1 - at.t
        directions = (append_dims(gap, at.x) * at.v, gap, torch.zeros_like(gap))
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, torch.ones_like(at.t)), directions, at.y)
        g = consistency_residual(F, at.v, ctx.warmed_up(p.warmup) * dF_scaled)
        residual = rms(g)
        g = append_dims(torch.cos(math.pi / 2 * at.t), g) * g
        g = g / (append_dims(rms(g), g) + p.constant)
        e = mean_square(F, F.detach() - g)
        logs = {"loss_cm": e.mean().detach(), "residual_cm": residual.mean()}
        if not p.learned_weight:
            return LossOutput(e.mean(), logs)
        if ctx.extra is None:
            raise ValueError("learned_weight needs the module that SCM.extra returns as ctx.extra")
        w = ctx.extra(at.t)
        return LossOutput((torch.exp(-w) * e + w).mean(), {**logs, "log_variance": w.mean().detach()})
