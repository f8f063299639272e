"""SplitMeanFlow (arXiv 2507.16884): the average velocity from two halves of its interval.

What a jump from t to s does, two jumps by way of any m between them do as well (interval splitting,
Eqs. 8 to 11). With m = t + lambda (s - t), lambda ~ U(0, 1),

    F(x_t, t, s) = lambda F(x_t, t, m) + (1 - lambda) F(x_m, m, s),   x_m = x_t + (m - t) F(x_t, t, m),
    L = e / sg(e + c)^p,   e = mean (F - sg(right side))^2

also holds at F = 0, so a share ``flow_matching_fraction`` of the rows has s = t and learns the
velocity v instead. No derivative is taken: the right side is two plain evaluations. As lambda -> 0 it becomes
MeanFlow's identity.

Mapping: the paper has noise at tau = 1 and the average velocity u(z, r, tau), r <= tau. With t = 1 - tau and
s = 1 - r it changes sign, F(x, t, s) = -u(z, r, tau), and its lambda, counted from tau, is ours.

Deviations from the paper:

* v is the guided velocity of a frozen teacher, or x1 - x0 without one, and only rows with s = t ask for it.
* The share of such rows, the law of t and s and the adaptive weight (off by default, p = 0) are chosen here.
* The right side is the network's own, without an average of its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import adaptive, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.rng import Rows
from ...core.times import sample_interval
from .params import SplitMeanFlowParams


class SplitMeanFlow(Method):
    params: SplitMeanFlowParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        rows = ctx.rng.spread(p.flow_matching_fraction)
        t, s = sample_interval(p.times, ctx.rng, rows.mask)
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        F = net(at.x, at.t, s, at.y)
        target = self._target(net, at, s, rows, ctx.rng.uniform("lambda").to(s.dtype))
        loss = adaptive(mean_square(F, target), p.norm_power, p.norm_constant).mean()
        residual = rms(upcast(F.detach()) - target).mean()
        return LossOutput(loss, {"loss_mf": loss.detach(), "residual_mf": residual})

    @torch.no_grad()
    def _target(self, net: nn.Module, at: PathSample, s: Tensor, rows: Rows, share: Tensor) -> Tensor:
        """v in the ``rows`` of s = t, elsewhere the two parts of the interval put together; (B, C, H, W)."""
        target, still, moving = upcast(torch.empty_like(at.x)), rows.inside, rows.outside
        if len(still):
            target[still] = upcast(at.velocity(still))
        if len(moving):
            x, t, s, y = at.x[moving], at.t[moving], s[moving], at.y[moving]
            share = share[moving]
            m = t + share * (s - t)
            first = upcast(net(x, t, m, y))
            second = upcast(net(flow_map(x, t, m, first).to(x.dtype), m, s, y))
            target[moving] = append_dims(share, x) * first + append_dims(1 - share, x) * second
        return target
