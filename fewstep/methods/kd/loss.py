"""Distillation of the whole ODE into one step (Luhman and Luhman, arXiv 2101.02388, section 3).

One jump is to give the teacher's solution from noise to data:

    L = mean (F(x_0, 0, 1) - (x_T - x_0))^2,   x_T = the teacher's ODE, solved from x_0 at t = 0 to t = 1

in ``solver_steps`` of Heun's method, or of Euler's. GET (arXiv 2401.08639) has the same objective, and
regresses such pairs with a deep equilibrium network.

Mapping: the papers have noise at the last time and solve the ODE backwards; here it runs from t = 0 to t = 1.

Deviations from the paper:

* Both solve the ODE beforehand, for a fixed set of noises. Here it is solved for the noise of each batch: no
  second data set is stored and no noise comes twice, at the price of a solution in every step.
* The teacher is guided and its solver is Heun's or Euler's; theirs are DDIM's and EDM's.
* GET's network and distance are not here.
* Without a teacher the ODE is that of the network's own velocity, without gradient.
* Times between 0 and 1 are never trained: the network is meant for one step only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.precision import upcast
from .params import KDParams


class KD(Method):
    params: KDParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        start = batch.x0.new_zeros(len(batch.x0))
        F = net(batch.x0, start, torch.ones_like(start), batch.y)
        target = self._solve(net, batch, ctx) - upcast(batch.x0)
        loss = mean_square(F, target).mean()
        return LossOutput(
            loss, {"loss_kd": loss.detach(), "residual_kd": rms(upcast(F.detach()) - target).mean()}
        )

    @torch.no_grad()
    def _solve(self, net: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """Where the ODE carries the noise, (B, C, H, W), at least float32."""
        p, dtype = self.params, batch.x0.dtype

        def velocity(x: Tensor, t: float) -> Tensor:
            times = batch.x0.new_full((len(x),), t)
            if ctx.teacher is not None:
                return upcast(ctx.teacher(x.to(dtype), times, batch.y))
            return upcast(net(x.to(dtype), times, times, batch.y))

        x, h = upcast(batch.x0), 1 / p.solver_steps
        for i in range(p.solver_steps):
            v = velocity(x, i * h)
            if p.solver == "heun":
                v = (v + velocity(x + h * v, (i + 1) * h)) / 2
            x = x + h * v
        return x
