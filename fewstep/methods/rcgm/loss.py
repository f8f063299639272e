"""RCGM, recursive consistent generation (the any-step base of TwinFlow, arXiv 2512.05150, section 3).

The average velocity between any two times, by one small step of length delta along the path and a chain of N
jumps of the target network over the rest (core/segments.py, chain_residual):

    L  = |u - sg(u + clip(xi))|^2,     u = F(x_t, t, s),   s ~ U(t, 1)
    xi = [delta v + sum_i (t_(i+1) - t_i) u-(x_(t_i), t_i, t_(i+1)) - (s - t) u] / delta

and xi = v - u, flow matching, where s - t <= delta. No derivative is taken. N = 1 and s = 1 is consistency
training, N = 1 MeanFlow's identity as a difference. v is x1 - x0, moved by guidance if asked for
(core/enhanced.py); no label is dropped or asked of a teacher otherwise.

Mapping: the paper has noise at tau = 1, target time r, and F = z - x. With t = 1 - tau, s = 1 - r,
u is -F, its step tau -> tau - delta is t -> t + delta, and r ~ U(0, tau) is s ~ U(t, 1).

Deviations from the paper:

* RCGM's own text could not be had; this is TwinFlow's account of it and its released rule.
* The first step, 0.01, and equal pieces after it are the release's; a reading of the paper has its times
  drawn one after the other.
* The metric is the mean square; TwinFlow's release has another (``TwinFlow.metric``).
* At the fixed point with the exact v the map is Euler's with steps of delta: the generated deviation is 1 to
  3 % small on Gaussian data. On data of several modes the single sample's v costs more than that.
"""

from __future__ import annotations

from torch import nn

from ...core.enhanced import EnhancedSample
from ...core.losses import bounded, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.precision import upcast
from ...core.segments import chain_residual, end_times
from ...core.times import sample_times
from .params import RCGMParams


class RCGM(Method):
    params: RCGMParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        at = EnhancedSample(batch, ctx, sample_times(p.times, ctx.rng, "t"), p.enhance, net)
        s = end_times(at.t, ctx.rng, p.near, p.near_length)
        u = net(at.x, at.t, s, at.y)
        xi = chain_residual(u, at, s, ctx.follow(net), p.segments, p.delta)
        towards = bounded(xi, p.clip)
        loss = mean_square(u, upcast(u.detach()) + towards).mean()
        return LossOutput(loss, {"loss_rcgm": loss.detach(), "residual_rcgm": rms(xi).mean()})
