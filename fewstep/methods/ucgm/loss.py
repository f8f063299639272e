"""UCGM, unified continuous generation (arXiv 2505.07447, section 3.1): one loss from many steps to few.

The consistency ratio l says how far from the data the pair of a point is: l = 0 is flow matching, l = 1
consistency training, and between them it is both at once. With u = F(x_t, t, s),

    L  = cos(1.57 (1 - t)) h(|u - sg(u + g(t) clip(xi))|^2),    g = 4 (1 - t) / sin(1.57 (1 - t))
    xi = v - [u - l u-(x_t', t')] / (1 - l),   t' = 1 - l (1 - t),   x_t' = x_t + (t' - t) v      (l < 1)
    xi = [f(x_b, b) - f(x_a, a)] / (b - a),    a, b = t -+ epsilon                                (l = 1)

and plain regression to v under the same weight and h, without gain and clip, for l = 0;
with f(x, t) = x + (1 - t) u-, u- the network itself or its moving average (``target_decay``), h the
pseudo-Huber function of constant ``huber``, and v = x1 - x0, guided if asked for (core/enhanced.py).
The network has no second time in the paper: one that has is given s = t for l = 0 and s = 1 for any other.

Mapping: the paper has noise at tau = 1, F = z - x, Beta(a, b) for tau. With t = 1 - tau the prediction of the
data is f, u = -F, l tau is 1 - l (1 - t), the time law is Beta(b, a); its linear transport is our path.

Deviations from the paper:

* sin(t) and cos(t) of the time: the release's 1.57 tau in their place.
* The paper's target has gain and clip for every l. The release leaves both out for l = 0, and this does too:
  with them the minimiser is not the mean of v.
* The paper feeds the plain x_(l tau) to the network and moves points only inside f; the release moves both,
  and the moved pair lies on the line through x_t with the guided velocity. That line is followed here.
* The pair of the central difference is cut to [0, 1]; the paper lets times leave it by epsilon.
* Other transports than the straight one are not here, nor is the second restart of random numbers: no
  network here draws any.
* ``gain: unit`` and ``ratio`` are the loss without UCGM's factors: the step of RCGM, and the surrogate's
  regression on (1 - l) v + l u-.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.enhanced import EnhancedSample
from ...core.losses import bounded, rms, velocity_loss
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims
from ...core.precision import upcast
from ...core.segments import central_residual, chain_residual, sine_gain
from ...core.times import sample_times
from .params import UCGMParams


class UCGM(Method):
    params: UCGMParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        at = EnhancedSample(batch, ctx, sample_times(p.times, ctx.rng, "t"), p.enhance, net)
        s = torch.ones_like(at.t) if p.ratio > 0 else at.t
        u = net(at.x, at.t, s, at.y)
        if p.ratio == 0:
            at.own = upcast(u.detach())
        xi = self._residual(u, at, ctx.follow(net))
        gain, weight = self._gain(at.t)
        aim = at.v if p.ratio == 0 else upcast(u.detach()) + append_dims(gain, xi) * bounded(xi, p.clip)
        error = velocity_loss(u, aim, p.cosine, p.huber)
        loss = (weight * error).mean()
        return LossOutput(loss, {"loss_ucgm": loss.detach(), "residual_ucgm": rms(xi).mean()})

    def _residual(self, u: Tensor, at: EnhancedSample, target: nn.Module) -> Tensor:
        p = self.params
        if p.ratio == 0:
            return upcast(at.v) - upcast(u.detach())
        if p.ratio == 1:
            return central_residual(at, target, p.epsilon)
        return chain_residual(u, at, torch.ones_like(at.t), target, 1, (1 - p.ratio) * (1 - at.t))

    def _gain(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and the weight of the loss, (B,)."""
        one = torch.ones_like(t)
        if self.params.gain == "sine":
            return sine_gain(t)
        return (1 - self.params.ratio if self.params.gain == "ratio" else 1.0) * one, one
