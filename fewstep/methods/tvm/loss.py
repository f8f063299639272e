"""TVM, terminal velocity matching (arXiv 2511.19797, section 3; terms and constants as released).

The velocity of the flow map f(x, t, s) = x + (s - t) F at its end is the field's own where it ends, and the
field is learned beside, at a time s' of its own:

    df/ds = F + (s - t) dF,   dF = JVP(F; (x_t, t, s); (0, 0, 1)),
    L     = (mean (df/ds - sg F^(f, s, s))^2 + mean (F(x_s', s', s') - v)^2) / w^2

where F^ is the moving average of the network. The gap s - t is drawn first, then s from its law cut to
(s - t, 1). Learning from data alone, v = w (x1 - x0) + (1 - w) F^(x_s', s', s', no label), and w = 1 for
rows that have lost their label; under a teacher v is its guided velocity, and w = 1.

Mapping: the paper has noise at tau = 1 and f = x + (sigma - tau) F, sigma <= tau. With all times taken from 1
the network changes sign, and so does the mean of s's law; a gap stays a gap.

Deviations from the paper:

* The gradient of dF is not found by differentiating twice: dF is exact, its gradient that of the central
  difference (F(s + h) - F(s - h)) / 2h, h = ``step``, two more evaluations, which differs by terms of order
  h^2. ``step: null`` gives dF none, as a switch of the release does.
* w is not an input of the network. The published models were trained at one w, at which label and lost label
  tell it as well. The output is not scaled by w.
* The network keeps its norms: the paper makes it Lipschitz by RMS norms, also of the modulation.
  It has SiT's 16 heads, not 18, and images are flipped at random.
* The release takes rows with s = t out of the first term; here no gap is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.times import sample_times
from .params import TVMParams


class TVM(Method):
    params: TVMParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        t, s = self._interval(ctx)
        at = PathSample(batch, ctx, t)
        s = s.to(at.t.dtype)
        gap = s - at.t
        target = ctx.follow(net)
        directions = (torch.zeros_like(at.x), torch.zeros_like(gap), gap)
        F, dF_scaled = ctx.jvp(net, (at.x, at.t, s), directions, at.y)
        velocity = upcast(F) + upcast(dF_scaled)
        if p.step is not None:
            ahead, behind = (net(at.x, at.t, s + h, at.y) for h in (p.step, -p.step))
            slope = append_dims(gap, F) * (upcast(ahead) - upcast(behind)) / (2 * p.step)
            velocity = velocity + slope - slope.detach()
        with torch.no_grad():
            landed = flow_map(at.x, at.t, s, upcast(F.detach())).to(at.x.dtype)
            there = upcast(target(landed, s, s, at.y))
        here = PathSample(batch, ctx, sample_times(p.end_times, ctx.rng, "velocity"))
        v, w = self._followed(target, here, ctx)
        terminal = mean_square(velocity, there) / w**2
        matching = mean_square(net(here.x, here.t, here.t, here.y), v) / w**2
        logs = {
            "loss_tv": terminal.mean().detach(),
            "loss_fm": matching.mean().detach(),
            "residual_tv": rms(velocity.detach() - there).mean(),
        }
        return LossOutput((terminal + matching).mean(), logs)

    def _interval(self, ctx: Context) -> tuple[Tensor, Tensor]:
        """t and s, each (B,), float32: s has its law, cut to what is at least the gap."""
        p = self.params
        gap = sample_times(p.gaps, ctx.rng, "gap")
        mean, std = p.end_times.mean, p.end_times.std
        assert mean is not None and std is not None
        below = torch.special.ndtr((torch.logit(gap.double()) - mean) / std)
        n = torch.special.ndtri(below + (1 - below) * ctx.rng.uniform("s").double())
        s = torch.sigmoid(mean + std * n).float()
        return (s - gap).clamp(min=0), s

    @torch.no_grad()
    def _followed(self, target: nn.Module, here: PathSample, ctx: Context) -> tuple[Tensor, Tensor]:
        """v (B, C, H, W), and the guidance scale w of each row (B,)."""
        v, one = upcast(here.v), torch.ones_like(here.t)
        if ctx.teacher is not None or self.params.scale == 1:
            return v, one
        w = (one * self.params.scale).where(here.y != ctx.null, one)
        free = upcast(target(here.x, here.t, here.t, torch.full_like(here.y, ctx.null)))
        scale = append_dims(w, v)
        return scale * v + (1 - scale) * free, w
