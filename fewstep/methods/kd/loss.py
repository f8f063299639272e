"""Distillation of the whole ODE into one step (Luhman and Luhman, arXiv 2101.02388, section 3).

One jump is to give the teacher's solution from noise to data:

    L = mean (F(x_0, 0, 1) - (x_T - x_0))^2,   x_T = the teacher's ODE, solved from x_0 at t = 0 to t = 1

in ``solver_steps`` of Heun's method, or of Euler's. GET (arXiv 2401.08639, section 4) regresses such pairs
with a network that iterates (backbones/get.py), and sums the distance over its iterates F_1 .. F_K:

    L = sum_k decay^(K - k) mean |F_k - (x_T - x_0)|,   decay = 0.8 in its release.

With ``solver_times: karras`` the ODE is solved as EDM does (arXiv 2206.00364, Algorithm 1): in z = x / t over
the noise level sigma = (1 - t) / t, where dz / dsigma = x - t v(x, t), from z = sigma_1 x_0 over N levels

    sigma_i = (sigma_1^(1/7) + (i - 1) / (N - 1) (sigma_N^(1/7) - sigma_1^(1/7)))^7,   then 0,

the last step without correction: 2 N - 1 evaluations of the teacher.

Mapping: the papers have noise at the last time and solve the ODE backwards; here it runs from t = 0 to t = 1.

Deviations from the paper:

* Both solve the ODE beforehand, for a fixed set of noises; GET's release makes a million pairs of noise and
  image by a program of its own, and every process holds its part of them in memory. Here it is solved for the
  noise of each batch: no second data set is stored and no noise comes twice, at the price of a solution in
  every step. For GET's 800,000 steps of 128 images that is 102 solutions for one of the paper's.
* The teacher is guided where its recipe says so, and its solver is Heun's or Euler's; that of Luhman and
  Luhman is DDIM's. GET's teacher is EDM's network; here it is one of flow matching.
* Without a teacher the ODE is that of the network's own velocity, without gradient.
* Times between 0 and 1 are never trained: the network is meant for one step only.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...core.losses import mean_absolute, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.precision import upcast
from ...core.times import karras_levels
from .params import KDParams

DISTANCES = {"l2": mean_square, "l1": mean_absolute}


class KD(Method):
    params: KDParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        start, decay = batch.x0.new_zeros(len(batch.x0)), self.params.iterate_decay
        several = {} if decay is None else {"iterates": True}
        F = net(batch.x0, start, torch.ones_like(start), batch.y, **several)
        target = self._solve(net, batch, ctx) - upcast(batch.x0)
        distance = DISTANCES[self.params.distance]
        if decay is None:
            loss = distance(F, target).mean()
        else:
            iterates = F.unbind()
            F = iterates[-1]
            weighted = (
                decay ** (len(iterates) - k) * distance(F_k, target).mean()
                for k, F_k in enumerate(iterates, 1)
            )
            loss = torch.stack(list(weighted)).sum()
        return LossOutput(
            loss, {"loss_kd": loss.detach(), "residual_kd": rms(upcast(F.detach()) - target).mean()}
        )

    @torch.no_grad()
    def _solve(self, net: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """Where the ODE carries the noise, (B, C, H, W), at least float32."""
        dtype = batch.x0.dtype

        def velocity(x: Tensor, t: float) -> Tensor:
            times = batch.x0.new_full((len(x),), t)
            if ctx.teacher is not None:
                return upcast(ctx.teacher(x.to(dtype), times, batch.y))
            return upcast(net(x.to(dtype), times, times, batch.y))

        solve = self._solve_karras if self.params.solver_times == "karras" else self._solve_even
        return solve(velocity, upcast(batch.x0))

    def _solve_even(self, velocity: Callable[[Tensor, float], Tensor], x: Tensor) -> Tensor:
        p, h = self.params, 1 / self.params.solver_steps
        for i in range(p.solver_steps):
            v = velocity(x, i * h)
            if p.solver == "heun":
                v = (v + velocity(x + h * v, (i + 1) * h)) / 2
            x = x + h * v
        return x

    def _solve_karras(self, velocity: Callable[[Tensor, float], Tensor], x0: Tensor) -> Tensor:
        p = self.params
        lowest, highest = p.sigma
        levels = [*karras_levels(p.solver_steps, lowest, highest).tolist(), 0.0]

        def slope(z: Tensor, sigma: float) -> Tensor:
            t = 1 / (1 + sigma)
            return t * (z - velocity(t * z, t))

        z = levels[0] * x0
        for now, after in pairwise(levels):
            d = slope(z, now)
            if p.solver == "heun" and after > 0:
                d = (d + slope(z + (after - now) * d, after)) / 2
            z = z + (after - now) * d
        return z
