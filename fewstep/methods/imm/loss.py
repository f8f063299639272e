"""IMM, inductive moment matching (arXiv 2503.07565, sections 3 and 4, Algorithm 1).

Groups of M rows share three times t <= r <= s. What the network makes of x_t at time s has to have the
law of what it makes of x_r, which is nearer to the data, without gradient:

    a_j = f(x_t, t, s),   b_j = sg f(x_r, r, s),   x_r = x_t + (r - t) v,   j = 1 .. M
    L   = w(t) mean_jk [k(a_j, a_k) + k(b_j, b_k) - 2 k(a_j, b_k)]
    k(a, b) = exp(-|a - b| / (D (s - t))),   D = C H W

the squared maximum mean discrepancy under a Laplace kernel; with M = 1 it compares as consistency
training does. r lies one step of ``decrement`` after t in the noise level eta(t) = (1 - t) / t, but not
after s. v is x1 - x0, so that x_r is the DDIM interpolant of the same pair; under a teacher it is the
guided teacher velocity. With lambda = 2 ln(t / (1 - t)), the logarithm of the signal-to-noise ratio,

    w(t) = t^a / (t^2 + (1 - t)^2) sigmoid(b - lambda) / (t (1 - t))

Mapping: the paper has noise at tau = 1, data of deviation 1/2, and f = x - (tau - s) G / 2. With t = 1 - tau
and latents of unit variance F = -G; the kernel's weight 1 / |c_out| is 2 / (tau - s) there, beside
distances half as long.

Deviations from the paper:

* s reaches 1, and t starts at 0.006 = 1 - 0.994 as in the paper, while our samplers start at 0.
* A teacher is not in the paper.
* Rows of a group keep their own labels, as the batch has drawn them.
* ``decrement: time`` (r = t + step), one of the paper's ablations, serves few training steps: near the noise
  a constant step in eta is next to none in t.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from .params import IMMParams

SHORTEST = 1e-4
"""Least distance of t from the data and of s from t in weights that divide by it."""


class IMM(Method):
    params: IMMParams

    @property
    def group(self) -> int:
        return self.params.particles

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        t = p.first + (1 - SHORTEST - p.first) * self._shared(ctx.rng.uniform("t"))
        at = PathSample(batch, ctx, t)
        s = at.t + (1 - at.t) * self._shared(ctx.rng.uniform("s"))
        r = torch.minimum(self.nearer(at.t), s)
        own = flow_map(at.x, at.t, s, upcast(net(at.x, at.t, s, at.y)))
        with torch.no_grad():
            x_r = (at.x + append_dims(r - at.t, at.x) * at.v).to(at.x.dtype)
            other = flow_map(x_r, r, s, upcast(net(x_r, r, s, at.y)))
        gap = (s - at.t)[:: p.particles].clamp(min=SHORTEST)
        discrepancy = self._discrepancy(own, other, gap)
        loss = (self.weight(at.t[:: p.particles]) * discrepancy).mean()
        return LossOutput(loss, {"loss_imm": loss.detach(), "mmd_imm": discrepancy.mean().detach()})

    def nearer(self, t: Tensor) -> Tensor:
        """r before it is bounded by s, (B,)."""
        if self.params.decrement == "time":
            return t + self.params.step
        return 1 / (1 + ((1 - t) / t - self.params.step).clamp(min=0))

    def weight(self, t: Tensor) -> Tensor:
        """w(t), (B,)."""
        p, rest = self.params, 1 - t
        snr = 2 * torch.log(t / rest)
        return t**p.power / (t**2 + rest**2) * torch.sigmoid(p.shift - snr) / (t * rest)

    def _shared(self, draws: Tensor) -> Tensor:
        """The first draw of each group for all of its rows, (B,)."""
        m = self.params.particles
        if len(draws) % m:
            raise ValueError(f"loss.particles: {len(draws)} rows are not groups of {m}")
        return draws[::m].repeat_interleave(m)

    def _discrepancy(self, a: Tensor, b: Tensor, gap: Tensor) -> Tensor:
        """Squared maximum mean discrepancy of each group, (groups,)."""
        a, b = (x.reshape(len(gap), self.params.particles, -1) for x in (a, b))
        scale = (gap * a.shape[-1])[:, None, None]

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            square = (x[:, :, None] - y[:, None]).square().sum(-1)
            return torch.exp(-square.clamp(min=1e-16).sqrt() / scale)

        return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).mean((1, 2))
