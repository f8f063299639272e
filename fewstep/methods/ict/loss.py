"""iCT, improved consistency training (arXiv 2310.14189, sections 3.1 to 3.5 and Table 1).

Neighbouring times t < r of a grid with N points, on the path of the same data and the same noise:

    L = d(f(x_t, t, 1), sg f(x_r, r, 1)) / (sigma(t) - sigma(r)),   x_r = x_t + (r - t) v,
    d = sqrt(e + c^2) - c,   e the mean square of the difference,   sigma(t) = (1 - t) / t

v is x1 - x0, so that x_r is the interpolant; under a teacher it is the guided teacher velocity, and
this is consistency distillation with one Euler step. The target is the network itself, without average.

The grid is EDM's (rho = 7), and N = min(first 2^floor(k / K'), last) + 1 in step k of K, where
K' = floor(K / (log2 floor(last / first) + 1)). An interval is drawn with the probability that
ln sigma ~ N(mean, std^2) falls into it.

Mapping: the paper has x = x1 + s x0 with data of deviation 1/2. Beside data of unit variance the noise level
is sigma = 2 s, and x_t = 2 t x with t = 1 / (1 + sigma), so the noisy end of a pair, which carries the
gradient, has the earlier time. The mean of ln sigma is -1.1 + ln 2 = -0.407, the grid spans 0.004 to 160, and
c is doubled.

Deviations from the paper:

* f = x + (1 - t) F with the velocity network, instead of c_skip x + c_out F; data of unit variance.
* The ends of the grid, sigma = 160 and 0.004 (t = 0.006 and 0.996), are moved to t = 0 and 1, the ends
  of the samplers.
* The distance is divided by sqrt(D), D = C H W, and so is c: 0.00108 beside a root mean square.
* Dropout in the network, alike in both evaluations, is left out: the backbones have none.
* A teacher is not in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.losses import mean_square, pseudo_huber, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.times import karras_grid
from .params import ICTParams


class ICT(Method):
    params: ICTParams

    def intervals(self, step: Tensor, steps: int) -> Tensor:
        """Number of intervals of the grid in this step, (), float64."""
        first, last = self.params.intervals
        stage = steps // (int(math.log2(last // first)) + 1)
        return (first * torch.exp2(step // max(stage, 1))).clamp(max=last)

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        count = self.intervals(ctx.step, ctx.steps)
        sigma, times = karras_grid(self.params.intervals[1] + 1, batch.x1.device, intervals=count)
        i = self._interval(sigma, count, ctx)
        at = PathSample(batch, ctx, times[i])
        r, end = times[i + 1].to(at.t.dtype), torch.ones_like(at.t)
        own = flow_map(at.x, at.t, end, upcast(net(at.x, at.t, end, at.y)))
        with torch.no_grad():
            x_r = (at.x + append_dims(r - at.t, at.x) * at.v).to(at.x.dtype)
            target = flow_map(x_r, r, end, upcast(net(x_r, r, end, at.y)))
        distance = pseudo_huber(mean_square(own, target), self.params.huber)
        loss = (distance / (sigma[i] - sigma[i + 1]).to(distance.dtype)).mean()
        residual = (rms((own - target).detach()) / (r - at.t)).mean()
        return LossOutput(loss, {"loss_ict": loss.detach(), "residual_ict": residual})

    def _interval(self, sigma: Tensor, count: Tensor, ctx: Context) -> Tensor:
        """Index (B,) of the noisy end of each row's interval, below ``count`` ()."""
        normal = (sigma.log() - self.params.mean) / self.params.std
        mass = torch.special.ndtr(normal[:-1]) - torch.special.ndtr(normal[1:])
        below = mass.cumsum(0) / mass.sum()
        found = torch.searchsorted(below, ctx.rng.uniform("interval").double())
        return torch.minimum(found, count.long() - 1)
