"""DE-CM, the dual-end consistency model (arXiv 2602.10764, Algorithm 1).

First update of a step, at a point (x_t, t) with v the guided teacher velocity (x1 - x0 without one):

    L_cm  consistency towards s = 1                                       (Eqs. 7, 10, 11)
    L_fm  = mean (F(x_t, t, t) - v)^2 + mean_HW (1 - cos_C)                (Eq. 17)

Every ``freq`` steps a second update at the same t, from near-noise r ~ U(0, r_max), r <= t: noise to
noisy, the average velocity from r to t, with lambda on its right end and gamma on its left end,

    F, Fdot = F(x_r, r, t), JVP(F; (x_r, r, t); (gamma v_r, gamma, -lambda))
    v_psi   = v(f(x_r, r, t), t),   f(x_r, r, t) = x_r + (t - r) sg(F)     (Eqs. 12 to 14)
    g       = [(lambda + gamma) sg(F) - gamma v_r - lambda v_psi - (t - r) Fdot] / (lambda + gamma)
    L_n2n   = e / sg(e + c)^p,  e = mean (F - (sg(F) - w2(r, t) clamp(g)))^2   (Eq. 15)

together with L_fm once more. g = 0 at the exact flow map for every lambda and gamma.

Mapping: none needed; noise is at t = 0 in the paper too.

Deviations from the paper:

* The tangent is (gamma v_r, gamma, -lambda), as Eq. 14 implies. Eq. 15 and line 22 exchange lambda and
  gamma, line 23 multiplies the derivative by lambda once more; at lambda = gamma = 1, our
  default, all of them agree.
* Line 23 uses F_cm where F_n2n of line 22 is meant.
* v_psi is the teacher at the student's own jump, as in Eqs. 13 to 15. Line 23 takes v_t of the data
  point's interpolant, which is not zero at the exact map: ``n2n_target: interpolant`` does that.
* Without a teacher nothing gives v_psi: the student's own F(f, t, t) is used, without gradient.
* Lines 20 and 21 guide v_r too. With guidance from t = 0.125 on, as in the recipe, and r below 0.01 it never
  is.
* g is divided by lambda + gamma, so that the clamp means the same as in L_cm.
* Left open in the paper: alpha(t) = 1 - t^(1/2), w2 = 1 - (1 - (t - r))^(1/2) (the same law of the
  interval's length; ``n2n_weight: linear`` is (t - r) / 2), freq 3, N = 100 segments, r_max = 1 / N.
* The clamp to [-1, 1] and, on L_cm, beta(t) = cos(pi t / 2) are FACM's; the paper mentions neither.
* t on N segments as in section 4.4; line 3 says U(0, 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.losses import consistency_loss, follow_residual, rms, velocity_loss
from ...core.method import Batch, Context, Loss, LossOutput, Method, SummedLoss
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample, sample_path
from ...core.precision import upcast
from .params import DECMParams


class DECM(Method):
    params: DECMParams

    def updates(self, step: int) -> Sequence[Loss]:
        """The first update, and noise to noisy every ``freq`` steps; the latter alone without cm and fm."""
        p = self.params
        anchor = (self.anchor,) if p.fm else ()
        jump = SummedLoss("noise_to_noisy", self.jump, *anchor)
        if not (p.cm or p.fm):
            return (jump,)
        towards_data = SummedLoss("towards_data", *((self.consistency,) if p.cm else ()), *anchor)
        return (towards_data, jump) if p.n2n and step % p.freq == 0 else (towards_data,)

    def consistency(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_cm, lines 8 to 15."""
        loss, logs = consistency_loss(net, sample_path(self.params.times, batch, ctx), ctx, self.params)
        return LossOutput(loss.mean(), logs)

    def anchor(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_fm and L'_fm, which have the same point and another network."""
        at = sample_path(self.params.times, batch, ctx)
        v = at.v  # before there is a graph to hold
        loss = velocity_loss(net(at.x, at.t, at.t, at.y), v, cosine=True).mean()
        return LossOutput(loss, {"loss_fm": loss.detach()})

    def jump(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_n2n, lines 18 to 28."""
        p = self.params
        at = sample_path(p.times, batch, ctx)
        near = PathSample(batch, ctx, torch.minimum(p.r_max * ctx.rng.uniform("r"), at.t))
        gap = at.t - near.t
        # Rows with t = r have gap 0, w2 = 0 and so no gradient; nothing is divided by the gap.
        directions = (
            append_dims(p.weight_left * gap, near.x) * near.v,
            p.weight_left * gap,
            -p.weight_right * gap,
        )
        F, dF_scaled = ctx.jvp(net, (near.x, near.t, at.t), directions, near.y)
        own = upcast(F.detach())
        right = self._right_velocity(net, flow_map(near.x, near.t, at.t, own), at, ctx)
        both = p.weight_left + p.weight_right
        g = own - (p.weight_left * near.v + p.weight_right * right + upcast(dF_scaled)) / both
        weight = 1 - (1 - gap).sqrt() if p.n2n_weight == "root" else gap / 2
        loss = follow_residual(F, g, weight, p).mean()
        return LossOutput(loss, {"loss_n2n": loss.detach(), "residual_n2n": rms(g).mean()})

    def _right_velocity(self, net: nn.Module, landed: Tensor, at: PathSample, ctx: Context) -> Tensor:
        """v_psi: the velocity at the right end t, where the jump has ``landed``; (B, C, H, W)."""
        if self.params.n2n_target == "interpolant":
            return at.v
        if ctx.teacher is not None:
            return ctx.teacher(landed, at.t, at.y)
        with torch.no_grad():
            return upcast(net(landed, at.t, at.t, at.y))
