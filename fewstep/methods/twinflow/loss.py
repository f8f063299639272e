"""TwinFlow (arXiv 2512.05150, Eqs. 1 to 10): an any-step model that is its own generator and its own critic.

The rows of a batch are split. Most learn RCGM's average velocity u = F(x_t, t, s) between any two times
(section 3; core/segments.py, chain_residual). A ``share`` teaches one step, x_f = x0 + sg(u(x0, 0, 1)):

    L_adv     = |v_fake(x_t^f, t) - (x_f - x0')|^2,   x_t^f = t x_f + (1 - t) x0',   x0' and t ~ U(0, 1) new
    L_rectify = |u(x0, 0, 1) - sg(u(x0, 0, 1) + v_real(x_t^f, t) - v_fake(x_t^f, t))|^2

in which v_real = F(x, t, t) is the velocity of the data, and v_fake that of the generated images, of the same
weights under another condition. The score is (t v - x) / (1 - t), so that t^2 / (1 - t) times the gradient
of L_rectify / 2 is that of KL(fake || real) at noise level t. The loss is the mean over all rows of all their
terms.

Mapping: the paper has noise at tau = 1, F = z - x, r for the target time, and asks for the fake role at
negative times (-tau, -tau). With t = 1 - tau, s = 1 - r and u = -F these are our (2 - t, 2 - t): embeddings
of times are continuous functions of any real number (FACM's expanded interval uses this too). Both roles meet
at the data, t = 1, as -tau = tau does at 0 in the paper.

Deviations from the paper:

* L_adv and L_rectify share rows, noise and time: the paper writes one expectation for each, the release gives
  each its own quarter of the batch. One value of v_fake then serves both.
* Which rows they are follows from the place in the global batch, evenly spread, not from a cut in order.
* ``metric``, ``time_weight``, ``near``, ``rectify_weight``, ``rectify_clamp`` and ``base_everywhere`` are the
  release's differences from the paper, off by default: its robust metric, its weight of short jumps, rows
  with s near t, the weight 0.5 and clamp 1 of the rectification, RCGM's loss on the generator's rows
  (unguided).
* No constants for class-conditional images are in the paper: text to image is all it does.
* A teacher gives weights to start from, and guidance if ``enhance`` asks for it; the paper guides with the
  network's own predictions (``enhance`` with ``reference: own``, ``difference: reference``, ``start: 0``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.enhanced import EnhancedSample
from ...core.heads import average_velocity
from ...core.losses import bounded, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, interpolate
from ...core.precision import upcast
from ...core.rng import Rows
from ...core.segments import Start, chain_residual, end_times
from ...core.times import sample_times
from .params import TwinFlowParams


class TwinFlow(Method):
    params: TwinFlowParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        twin = ctx.rng.spread(p.share)
        t = sample_times(p.times, ctx.rng, "t").masked_fill(twin.mask, 0)
        at = EnhancedSample(batch, ctx, t, p.enhance, net)
        s = end_times(at.t, ctx.rng, p.near, p.near_length).masked_fill(twin.mask, 1)
        u = net(at.x, at.t, s, at.y)
        base, xi = self._base(u, at, s, twin, ctx.follow(net))
        total = base.sum() / len(t)
        logs = {"loss_base": total.detach(), "residual_rcgm": rms(xi).sum() / len(t)}
        if p.share == 0:
            return LossOutput(total, logs)
        adversarial, rectified, gap = self._twin(u, at, twin.inside, net, batch, ctx)
        # Means over all rows, so that parts of a batch average to the whole however they are cut.
        logs["loss_adv"] = adversarial.sum().detach() / len(t)
        logs["loss_rectify"] = rectified.sum().detach() / len(t)
        logs["gap_twin"] = rms(gap).sum() / (p.share * len(t))
        return LossOutput(total + (adversarial.sum() + p.rectify_weight * rectified.sum()) / len(t), logs)

    def _base(
        self, u: Tensor, at: EnhancedSample, s: Tensor, twin: Rows, target: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """RCGM's loss of the rows that learn it (N,), and its residual."""
        p = self.params
        start = Start(at.x, at.t, upcast(at.line).where(append_dims(twin.mask, at.x), upcast(at.v)), at.y)
        if not p.base_everywhere:
            rows = twin.outside
            start, s, u = Start(*(each[rows] for each in start)), s[rows], u[rows]
        xi = chain_residual(u, start, s, target, p.segments, p.delta)
        towards = bounded(xi, p.clip)
        loss = self._metric(mean_square(u, upcast(u.detach()) + towards))
        if p.time_weight:
            loss = loss * (torch.tan((1 - (s - start.t)) * math.pi / 2.5) + 1)
        return loss, xi

    def _twin(
        self, u: Tensor, at: EnhancedSample, rows: Tensor, net: nn.Module, batch: Batch, ctx: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """L_adv and L_rectify of ``rows`` (N,), and v_real - v_fake (N, C, H, W)."""
        p = self.params
        u, y = u[rows], at.y[rows]
        fake = batch.x0[rows] + upcast(u.detach())
        noise = ctx.rng.normal_like("twin noise", batch.x0)[rows]
        t = ctx.rng.uniform("twin t")[rows].to(at.t.dtype)
        x = interpolate(noise, fake, t).to(at.x.dtype)
        v_fake = net(x, 2 - t, 2 - t, y)
        with torch.no_grad():
            gap = average_velocity(net, x, t, t, y) - upcast(v_fake)
        towards = bounded(gap, p.rectify_clamp)
        adversarial = self._metric(mean_square(v_fake, fake - noise))
        return adversarial, self._metric(mean_square(u, upcast(u.detach()) + towards)), gap

    def _metric(self, e: Tensor) -> Tensor:
        """Of mean squares e (B,): themselves, or near their root (the release's robust loss)."""
        p = self.params
        if p.metric == "squared":
            return e
        return e * (e / (p.metric_constant**2 + 1e-8) + 1).rsqrt().detach() / p.metric_constant
