"""F2D2 (arXiv 2512.02636): a flow map F and the average divergence D along it, for few-step likelihoods.

Along the flow, dx/dt = v and d log p / dt = -div v. A network with a second output, one number, learns both
averages over an interval from t to s, D in units of divergence / ``scale``:

    F(x_t, t, s) = 1 / (s - t) int_t^s v dtau,    D(x_t, t, s) = 1 / (s - t) int_t^s div v / scale dtau.

At s = t both are known: v, and div v of the frozen teacher by one forward tangent along random signs
(core/divergence.py), or exactly. Longer intervals are learned in one of two forms.

* shortcut (as released for Shortcut-Distill-F2D2; arXiv 2410.12557, Eq. 4): a share ``bootstrap`` of rows,
  with intervals of length d = 1, 1/2, ..., 2/M on their grid, whose two halves give the target:
      F <- (F1 + F2) / 2,   D <- (D1 + D2) / 2,   the second from x + (m - t) F1, m the middle.
* meanflow (MeanFlow-F2D2; the identity of arXiv 2505.13447, Eq. 6, for both averages):
      F <- v + (s - t) dF,   D <- div v / scale + (s - t) dD,   (dF, dD) = JVP((F, D); (x, t, s); (v, 1, 0)).

All targets without gradient; mean squares, their sum. log p(x1) = log N(x0) + sum (s - t) scale D over jumps
from the data to the noise (evaluation/likelihood.py).

Mapping: noise is at t = 0 in the release's code too; its network is given the length of the interval, ours
the end.

Deviations from the paper:

* A share ``backward`` of the intervals leads from the data to the noise. The release learns jumps to the data
  alone, and takes a step to the noise by the jump to the data that starts where the step does, which at t = 1
  was never trained.
* The smallest jump is conditioned on s = t; the release has flow rows at d = 1/1024 and halves down to 1/128.
* Flow and bootstrap share one batch; the release evaluates each on a whole batch.
* MeanFlow-F2D2 is not in the release: its divergence is written from the identity, its times are this
  repository's.
* Under guidance v is the guided teacher's, but div v that of the teacher without: likelihoods are for
  trainings without guidance.
* Without a teacher v is x1 - x0, and div v that of the network's own velocity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.divergence import divergence
from ...core.losses import adaptive, mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample, without_interval
from ...core.precision import upcast
from ...core.times import sample_interval
from .params import F2D2Params


class F2D2(Method):
    params: F2D2Params

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        form = self._shortcut if self.params.form == "shortcut" else self._meanflow
        (F, D), (F_target, D_target) = form(net, batch, ctx)
        e = mean_square(F, F_target)
        e_D = (upcast(D) - D_target).square()
        p = self.params
        loss = (adaptive(e, p.norm_power, p.norm_constant) + p.divergence_weight * e_D).mean()
        logs = {
            "loss_f2d2": loss.detach(),
            "residual_f2d2": rms(upcast(F.detach()) - F_target).mean(),
            "divergence_f2d2": p.scale * e_D.detach().mean().sqrt(),
        }
        return LossOutput(loss, logs)

    def _shortcut(self, net: nn.Module, batch: Batch, ctx: Context) -> tuple[tuple[Tensor, Tensor], ...]:
        """Outputs and targets, velocity (B, C, H, W) and scalar (B,) each."""
        p = self.params
        rows = ctx.rng.spread(p.bootstrap)
        jumps = 2 ** ctx.rng.integers("size", p.grid.bit_length() - 1)  # 1, 2, ..., M / 2
        jumps = jumps.masked_fill(~rows.mask, p.grid)
        start = (ctx.rng.uniform("t") * jumps).floor() / jumps
        t, s = self._directed(start, start + 1 / jumps, ctx)
        s = torch.where(rows.mask, s, t)  # of those towards the noise t reaches 1, where likelihoods start
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        F_target = torch.empty_like(upcast(at.x))
        D_target = torch.empty_like(upcast(at.t))
        if len(rows.outside):
            F_target[rows.outside] = upcast(at.velocity(rows.outside))
            D_target[rows.outside] = self._divergence(net, at, ctx, rows.outside)
        if len(rows.inside):
            halves = self._two_halves(net, at, s, jumps, rows.inside)
            F_target[rows.inside], D_target[rows.inside] = halves
        return net(at.x, at.t, s, at.y), (F_target, D_target)

    @torch.no_grad()
    def _two_halves(
        self, net: nn.Module, at: PathSample, s: Tensor, jumps: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Averages from t to s over two jumps of half the length, of ``rows`` (N,)."""
        x, t, s, y = at.x[rows], at.t[rows], s[rows], at.y[rows]
        middle = (t + s) / 2
        smallest = 2 * jumps[rows] == self.params.grid
        F1, D1 = map(upcast, net(x, t, torch.where(smallest, t, middle), y))
        landed = flow_map(upcast(x), t, middle, F1).to(x.dtype)
        F2, D2 = map(upcast, net(landed, middle, torch.where(smallest, middle, s), y))
        return (F1 + F2) / 2, (D1 + D2) / 2

    def _meanflow(self, net: nn.Module, batch: Batch, ctx: Context) -> tuple[tuple[Tensor, Tensor], ...]:
        """Outputs and targets, as for :meth:`_shortcut`."""
        p = self.params
        still = without_interval(ctx, p.flow_matching_fraction)
        t, s = self._directed(*sample_interval(p.times, ctx.rng, still), ctx)
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        gap = s - at.t
        v = upcast(at.v)
        directions = (append_dims(gap, at.x) * v.to(at.x.dtype), gap, torch.zeros_like(gap))
        (F, D), (dF, dD) = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        every = torch.arange(len(gap), device=gap.device)
        return (F, D), (v + upcast(dF), self._divergence(net, at, ctx, every) + upcast(dD))

    def _directed(self, start: Tensor, end: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        """t and s of intervals, of which some lead to the noise; (B,) each."""
        backward = ctx.rng.uniform("backward") < self.params.backward
        return torch.where(backward, end, start), torch.where(backward, start, end)

    def _divergence(self, net: nn.Module, at: PathSample, ctx: Context, rows: Tensor) -> Tensor:
        """div v / scale of the teacher, or of the network itself without one, for ``rows`` (N,)."""
        exact = self.params.trace == "exact"
        probe = None if exact else ctx.rng.signs_like("probe", at.x)[rows]
        followed = net if ctx.teacher_net is None else ctx.teacher_net
        _, found = divergence(ctx.jvp, followed, at.x[rows], at.t[rows], at.y[rows], probe)
        return found / self.params.scale
