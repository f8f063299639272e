"""DuMo, dual-output flow-map models (arXiv 2602.17682): one network, two outputs, no target time.

A forward pass at (x_t, t) gives the velocity v and the average velocity u to the data end, s = 1. All
samples of a batch train both,

    L   = L_v + w_u L_u
    L_v = |v - v*|^2                                  v* = x1 - x0, or guided (core/enhanced.py)
    L_u = |u - sg(u + g(t) clip(xi))|^2

where xi is the change of the predicted data f = x + (1 - t) u along the path, zero at the exact map:

    xi  = [f(x_b, b) - f(x_a, a)] / (b - a),          x_a = x_t + (a - t) w, x_b likewise

* ``difference: one-sided``: a = t and b = 1 - l (1 - t) with the consistency ratio l, or b = t + delta:
  xi = w - [u(x_t, t) - l u-(x_b, b)] / (1 - l), with u- the target network. Where b >= 1, xi = v* - u.
* ``central``: a, b = t -+ delta, a cut at 0; ``tangent``: the limit xi = w - u + (1 - t) du along (w, 1).
* ``direction: head``: w = sg(v), so that the velocity head carries the flow map; ``conditional``: w = v*.
* ``gain: unit`` without clip has the gradient of the surrogate of Theorem 1,
  |u - w|^2 + l / (1 - l) |u - sg(u-(x_b))|^2; ``ratio`` that of its regression on (1 - l) w + l u-;
  ``sine``: g = 4 (1 - t) / sin(1.57 (1 - t)), weight cos(1.57 (1 - t)) (UCGM, arXiv 2505.07447, section 3.1).

On linear-Gaussian data the error of the map learned so is O(1 - l) for either direction. Where modes meet,
it is far larger for ``conditional``: one sample's direction is not the flow's, and the map is smoothed.

Mapping: the paper has noise at tau = 1 and outputs F = z - x; with t = 1 - tau v and u are its negated
outputs, its step from tau to l tau is that from t to 1 - l (1 - t), and tau ~ Beta(a, b) is t ~ Beta(b, a).

Deviations from the paper:

* The full text could not be had. This is assembled from the abstract, the captions and the sibling papers
  UCGM (arXiv 2505.07447) and RCGM, its Theorem 1 from UCGM's loss. What the paper says is two outputs without
  a target time, both trained on every sample, and an added head of less than 0.5 % of the weights.
* The direction is not known: UCGM's and RCGM's is ``conditional``; ``head`` is the default here, as it errs
  less on data of several modes.
* The interval is not known: delta = 0.01, g = 1 and clip 1 are RCGM's; UCGM has the central difference.
* Neither the weight of L_u is known (1 here), nor the metric: mean squares, or the pseudo-Huber loss of UCGM.
* The target network is the network itself, as in UCGM's few-step training and TwinFlow's; should that be
  unstable, a ``target_decay`` of 0.9 is known to train where 0.999 collapsed.
* The added head is a second final layer, a copy of the first at the start: 2.675 M weights at XL/2.
  With a teacher of 675 M that is less than the 679 M in the paper.
* Guidance is UCGM's enhanced target.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.enhanced import EnhancedSample
from ...core.losses import bounded, mean_square, pseudo_huber, rms, velocity_loss
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims
from ...core.precision import upcast
from ...core.segments import sine_gain
from ...core.times import sample_times
from .params import DuMoParams


class DuMo(Method):
    params: DuMoParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        at = EnhancedSample(batch, ctx, sample_times(p.times, ctx.rng, "t"), p.enhance, net)
        if p.difference == "tangent":
            v, u, xi = self._tangent(net, at, ctx)
        else:
            v, u = net(at.x, at.t, torch.ones_like(at.t), at.y)
            at.own = upcast(v.detach())
            xi = self._difference(ctx.follow(net), at, upcast(u.detach()))
        towards = bounded(xi, p.clip)
        gain, weight = self._gain(at.t)
        target = upcast(u.detach()) + append_dims(gain, xi) * towards
        loss_u = (weight * pseudo_huber(mean_square(u, target), p.huber_u)).mean()
        loss_v = velocity_loss(v, at.v, p.cosine_v, p.huber_v).mean()
        logs = {"loss_v": loss_v.detach(), "loss_u": loss_u.detach(), "residual_u": rms(xi).mean()}
        return LossOutput(loss_v + p.weight_u * loss_u, logs)

    def _along(self, at: EnhancedSample) -> Tensor:
        """w, (B, C, H, W)."""
        return at.own if self.params.direction == "head" else upcast(at.v)

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, (B,); b may lie beyond 1."""
        p = self.params
        if p.ratio is not None:
            return t, 1 - p.ratio * (1 - t)
        assert p.delta is not None
        return (t - p.delta).clamp(min=0) if p.difference == "central" else t, t + p.delta

    def _difference(self, target: nn.Module, at: EnhancedSample, u: Tensor) -> Tensor:
        """xi by a difference quotient; ``u`` without a graph."""
        w = self._along(at)
        a, b = self._ends(at.t)
        beyond = b >= 1
        gap = torch.where(beyond, torch.ones_like(b), b - a)
        first = self._map(target, at, w, a) if self.params.difference == "central" else u
        second = self._map(target, at, w, b.clamp(max=1))
        # Small numbers over a small gap: scaled one by one, for the sake of bf16.
        xi = w - (append_dims((1 - a) / gap, u) * first - append_dims((1 - b) / gap, u) * second)
        return torch.where(append_dims(beyond, u), upcast(at.v) - u, xi)

    def _map(self, target: nn.Module, at: EnhancedSample, w: Tensor, t: Tensor) -> Tensor:
        """u- at x_t moved along w to the times ``t`` (B,), (B, C, H, W), without a graph."""
        with torch.no_grad():
            x = at.x + append_dims(t - at.t, w) * w
            return upcast(target(x.to(at.x.dtype), t, torch.ones_like(t), at.y)[1])

    def _tangent(self, net: nn.Module, at: EnhancedSample, ctx: Context) -> tuple[Tensor, Tensor, Tensor]:
        """v and u with their graph, and xi from the derivative of the network itself."""
        w, gap, ends = self._along(at), 1 - at.t, torch.ones_like(at.t)
        directions = ((append_dims(gap, w) * w).to(at.x.dtype), gap, torch.zeros_like(gap))
        (v, u), (_, du_scaled) = ctx.jvp(net, (at.x, at.t, ends), directions, at.y)
        return v, u, w - upcast(u.detach()) + upcast(du_scaled)

    def _gain(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and the weight of the loss, (B,)."""
        p, left, one = self.params, 1 - t, torch.ones_like(t)
        if p.gain == "ratio":
            _, b = self._ends(t)
            # 1 - l = (b - t) / (1 - t), and 1 where the interval reaches the data.
            return torch.where(b >= 1, one, (b - t) / left.clamp(min=1e-8)), one
        if p.gain == "sine":
            return sine_gain(t)
        return one, one
