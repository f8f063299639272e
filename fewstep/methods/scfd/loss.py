"""Self-corrected flow distillation (arXiv 2412.16906; objective, constants and schedule as released).

One network is distilled from a teacher for one step and for several: f(x, t) = x + (1 - t) F(x, t) is where
it says that the path ends. f- is the same of its moving average, h the pseudo-Huber distance, the mean over
C, H, W of sqrt((a - b)^2 + c^2) - c, and x_t = t x1 + (1 - t) x0:

    L_con  = h(f(x_t, t), f-(x_t + d v, t + d)),   d ~ U(0, min(1 - t, step)); x1 where t + d > data_from
    L_back = h(f(x_t, t), f-(x_t - e v, t - e)),   e ~ U(0, min(t, step))
    L_re   = mean (f(z_t, t) - g)^2,               g = sg f(x0, 0),   z_t = t g + (1 - t) x0
    L_gan  = softplus(-D(f(x0, 0)))
    L      = L_con + backward_weight L_back + reflow_weight L_re + adversarial_weight L_gan

with the teacher's velocity v. The discriminator D has a turn before each:

    L_D    = softplus(-D(x1)) + softplus(D(g)) + gamma / 2 |grad D(x1)|^2

whose last term is R1 (arXiv 1801.04406, Eq. 9).
L_back and L_re enter from training step ``warmup`` on. All of a step share its noise, data and t.

Mapping: the paper has noise at tau = 1. With t = 1 - tau its velocity is -F, its step down is our d and its
step up our e, and its truncation of targets below tau = 0.4 is one beyond t = 0.6.

Deviations from the paper:

* The paper could be read in part only: where it differs from its release, this is the release.
* The paper trains without labels. Here the network is asked with the label, and the teacher's velocity is
  guided where the setting says so; the discriminator sees no label, as in the release.
* The minibatch deviation of the discriminator is over groups of neighbouring rows
  (discriminator.py).
* The discriminator has no embedding of a time: the release builds one and never asks it.
* A step before the warm-up ends is one of index below ``warmup``; the release starts one step later.
* Its loss for text to image, with another discriminator and LPIPS, is not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ...core.losses import mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method, Turn, Update
from ...core.path import append_dims, flow_map, interpolate
from ...core.path_sample import PathSample, labels
from ...core.precision import upcast
from ...core.times import sample_times
from .discriminator import Discriminator
from .params import SCFDParams


class SCFD(Method):
    params: SCFDParams

    @property
    def group(self) -> int:
        return self.params.group

    def players(self, net: nn.Module) -> dict[str, nn.Module]:
        p = self.params
        return {"discriminator": Discriminator(net.shape, p.channels, p.largest, p.group)}

    def updates(self, step: int) -> Sequence[Update]:
        own = self.first_steps if step < self.params.warmup else self.corrected
        return (Turn("discriminator", self.discriminate, second_order=True), own)

    def first_steps(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L without L_back and L_re."""
        return self._student(net, batch, ctx, corrected=False)

    def corrected(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L."""
        return self._student(net, batch, ctx, corrected=True)

    def discriminate(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_D."""
        discriminator = ctx.players["discriminator"]
        with torch.no_grad():
            fake = _one_step(net, batch, labels(batch, ctx)).to(batch.x1.dtype)
        real = batch.x1.detach().requires_grad_()
        score = discriminator(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        penalty = upcast(slope).square().flatten(1).sum(1).mean()
        loss = (softplus(-upcast(score)) + softplus(upcast(discriminator(fake)))).mean()
        total = loss + self.params.gradient_penalty / 2 * penalty
        return LossOutput(total, {"loss_discriminator": loss.detach(), "penalty_r1": penalty.detach()})

    def _student(self, net: nn.Module, batch: Batch, ctx: Context, corrected: bool) -> LossOutput:
        p = self.params
        at = PathSample(batch, ctx, sample_times(p.times, ctx.rng, "t"))
        own = _ahead(net, at.x, at.t, at.y)
        ahead = ctx.rng.uniform("ahead").to(at.t.dtype) * (1 - at.t).clamp(max=p.step)
        target = self._target(net, at, ahead, ctx)
        target = torch.where(append_dims(at.t + ahead > p.data_from, target), upcast(batch.x1), target)
        consistency = self._distance(own, target).mean()
        logs = {"loss_scfd": consistency.detach(), "residual_scfd": rms((own - target).detach()).mean()}
        total = consistency
        generated = _one_step(net, batch, at.y)
        if corrected:
            behind = ctx.rng.uniform("behind").to(at.t.dtype) * at.t.clamp(max=p.step)
            backward = self._distance(own, self._target(net, at, -behind, ctx)).mean()
            line = interpolate(upcast(batch.x0), generated.detach(), at.t).to(at.x.dtype)
            reflow = mean_square(_ahead(net, line, at.t, at.y), generated.detach()).mean()
            total = total + p.backward_weight * backward + p.reflow_weight * reflow
            logs |= {"loss_backward": backward.detach(), "loss_reflow": reflow.detach()}
        score = ctx.players["discriminator"](generated.to(batch.x1.dtype))
        adversarial = softplus(-upcast(score)).mean()
        logs["loss_adversarial"] = adversarial.detach()
        return LossOutput(total + p.adversarial_weight * adversarial, logs)

    @torch.no_grad()
    def _target(self, net: nn.Module, at: PathSample, step: Tensor, ctx: Context) -> Tensor:
        """f- after one Euler step of lengths ``step`` (B,), (B, C, H, W)."""
        x = (at.x + append_dims(step, at.x) * at.v).to(at.x.dtype)
        return _ahead(ctx.follow(net), x, at.t + step, at.y)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        """h, (B,)."""
        c = self.params.huber
        return (((a - b).square() + c * c).sqrt() - c).flatten(1).mean(1)


def _ahead(net: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """f(x, t), (B, C, H, W), at least float32."""
    end = torch.ones_like(t)
    return flow_map(upcast(x), t, end, upcast(net(x, t, end, y)))


def _one_step(net: nn.Module, batch: Batch, y: Tensor) -> Tensor:
    """f(x0, 0), (B, C, H, W), at least float32."""
    return _ahead(net, batch.x0, batch.x0.new_zeros(len(batch.x0)), y)
