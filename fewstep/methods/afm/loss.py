"""AFM, adversarial flow models (arXiv 2511.22475, section 3; constants as released).

A generator jumps from t to s, and a discriminator D(x, s, y) tells where it lands from the path itself:

    fake   = x_t + (s - t) F(x_t, t, s),   real = s x1 + (1 - s) z,   z independent of x0,
    L_D    = softplus(D(fake) - D(real)) + c (D(real) + D(fake))^2
             + a w mean ((D(x + h n) - D(x)) / h)^2 over a share of the rows, at x = real and x = fake,
    L_G    = softplus(D(real) - D(fake)) + l / w mean (fake - x_t)^2,   w = max(s - t, 0.001)

with n ~ N(0, I). The last term moves each point as little as it can: it picks one of the maps that the
discriminator cannot tell apart. Its weight l falls from ``transport`` to ``transport_end`` by a cosine.
Guidance (option ``classifier``) adds ``weight`` times the cross-entropy of a classifier C(x, t) at

    x = r fake + (1 - r) n,   r ~ U(times),

or, where jumps do not end at the data, at the fake itself, if s lies in ``times``. C learns points of the
path at t ~ U(0, 1).
The gradient of L_G's first term on fake is divided by the root of a moving average of its squared norm times
the number of elements, so that it does not depend on D's scale.

Mapping: the paper has noise at tau = 1. With all times taken from 1, tau ~ U(0, 1) and its target u tau,
u ~ U(0, 1), are t = 1 - tau and s = 1 - u (1 - t).

Deviations from the paper:

* Both updates of a step see the same rows; the release takes a new batch for each, and counts both as steps:
  its cosine of 1,000,000 steps is one of 500,000 here.
* The moving average that the gradient is divided by ends with the previous step and starts without bias;
  that of the release includes the step's own gradient and starts at 0. In the first step the
  discriminator's gradient is left out.
* Which rows have the penalties is fixed, evenly over the batch; the release takes the first ones.
* F is the average velocity for every choice of ``steps``; the release predicts the end point where there is
  one step, and then has no times in the networks.
* The release trains the classifier first (a DiT-B on shifted and rotated images) and turns to guidance by
  hand, once transport has fallen. Here it is one more player, of half of the generator's layers, which learns
  from the same rows as the others; guidance begins with step ``start``.
* The release's program looks for the switch of the noise elsewhere than its configuration has it, and so
  classifies what is made as it is, at the drawn time. Here the noise is added, as the paper says.
* What the discriminator sees is not shifted or erased in parts, as in the release's guided stage.
* A network whose blocks repeat (backbone ``repeats``) is told t and s beside the number of the pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from ...core.losses import mean_square
from ...core.method import Batch, Context, LossOutput, Method, Turn, Update
from ...core.path import flow_map, interpolate
from ...core.precision import upcast
from .params import AFMParams, ClassifierGuidance

GRADIENT = "gradient_square"


class AFM(Method):
    params: AFMParams

    def players(self, net: nn.Module) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"discriminator": net.critic()}
        if self.params.classifier is not None:
            found["classifier"] = net.classifier()
        return found

    @property
    def averages(self) -> dict[str, float]:
        return {GRADIENT: self.params.gradient_decay}

    def updates(self, step: int) -> tuple[Update, ...]:
        guidance, discriminate = self.params.classifier, Turn("discriminator", self.discriminate)
        if guidance is None:
            return discriminate, self.generate
        generate = self.generate if step < guidance.start else self.generate_guided
        return Turn("classifier", self.classify), discriminate, generate

    def times(self, batch: Batch, ctx: Context) -> tuple[Tensor, Tensor]:
        """t and s > t of the step's jumps, each (B,)."""
        dtype = batch.x1.dtype
        if self.params.steps is None:
            t = ctx.rng.uniform("t").to(dtype)
            return t, 1 - ctx.rng.uniform("s").to(dtype) * (1 - t)
        k = ctx.rng.integers("t", self.params.steps).to(dtype)
        return k / self.params.steps, (k + 1) / self.params.steps

    def discriminate(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_D."""
        p = self.params
        t, s = self.times(batch, ctx)
        with torch.no_grad():
            x = interpolate(batch.x0, batch.x1, t)
            fake = flow_map(x, t, s, net(x, t, s, batch.y))
        real = interpolate(ctx.rng.normal_like("target", batch.x1), batch.x1, s)
        rows = ctx.rng.spread(p.penalty_share).inside
        near = [
            (x + p.penalty_step * ctx.rng.normal_like(name, x))[rows]
            for name, x in (("near real", real), ("near fake", fake))
        ]
        times, labels = torch.cat([s, s, s[rows], s[rows]]), torch.cat([batch.y] * 2 + [batch.y[rows]] * 2)
        logits = ctx.players["discriminator"](torch.cat([real, fake, *near]), times, labels)
        d_real, d_fake, *d_near = logits.split([len(s), len(s), len(rows), len(rows)])
        adversarial = softplus(d_fake - d_real).mean()
        weight = p.penalty * self._length(t, s)[rows] / p.penalty_step**2
        # Over all rows, so that parts of a batch average to the whole however they are cut.
        r1, r2 = (
            (weight * (there - here[rows]).square()).sum() / (p.penalty_share * len(s))
            for there, here in zip(d_near, (d_real, d_fake), strict=True)
        )
        loss = adversarial + r1 + r2 + p.centring * (d_real + d_fake).square().mean()
        logs = {"loss_adversarial": adversarial, "r1": r1, "r2": r2, "logit_gap": (d_real - d_fake).mean()}
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()})

    def classify(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """Cross-entropy of the classifier at points of the path."""
        t = ctx.rng.uniform("classified t").to(batch.x1.dtype)
        logits = ctx.players["classifier"](interpolate(batch.x0, batch.x1, t), t)
        loss = cross_entropy(logits, batch.y)
        accuracy = (logits.argmax(1) == batch.y).float().mean()
        return LossOutput(loss, {"loss_ce": loss.detach(), "accuracy": accuracy})

    def generate(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_G without guidance."""
        return self._generate(net, batch, ctx, None)

    def generate_guided(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """L_G with the classifier's cross-entropy."""
        return self._generate(net, batch, ctx, self.params.classifier)

    def _generate(
        self, net: nn.Module, batch: Batch, ctx: Context, classifier: ClassifierGuidance | None
    ) -> LossOutput:
        t, s = self.times(batch, ctx)
        x = interpolate(batch.x0, batch.x1, t)
        fake = flow_map(x, t, s, net(x, t, s, batch.y))
        real = interpolate(ctx.rng.normal_like("target", batch.x1), batch.x1, s)
        tip = fake.detach().requires_grad_()
        both = ctx.players["discriminator"](torch.cat([real, tip]), torch.cat([s, s]), batch.y.repeat(2))
        d_real, d_fake = both.chunk(2)
        adversarial = softplus(d_real - d_fake)
        (gradient,) = torch.autograd.grad(adversarial.sum(), tip)
        gradient = upcast(gradient)
        square = gradient[0].numel() * gradient.square().flatten(1).sum(1).mean()
        known = ctx.averages[GRADIENT]
        scale = torch.where(known > 0, known.clamp(min=1e-16).rsqrt(), 0)
        # Has that gradient, and the value of the term itself.
        follow = (upcast(fake) * (scale * gradient)).flatten(1).sum(1)
        follow = adversarial.detach() + follow - follow.detach()
        transport = self._transport(ctx) / self._length(t, s) * mean_square(fake, x)
        loss = (follow + transport).mean()
        logs = {"loss_adversarial": adversarial.mean(), "loss_transport": transport.mean()}
        if classifier is not None:
            guidance = self._guidance(classifier, fake, s, batch, ctx).mean()
            loss = loss + guidance
            logs["loss_classifier"] = guidance
        return LossOutput(loss, {name: value.detach() for name, value in logs.items()}, {GRADIENT: square})

    def _guidance(self, p: ClassifierGuidance, fake: Tensor, s: Tensor, batch: Batch, ctx: Context) -> Tensor:
        """Weighted cross-entropy of each row at what is made, (B,)."""
        low, high = p.times
        r = s
        if p.renoise:
            r = low + (high - low) * ctx.rng.uniform("guided t").to(s.dtype)
            fake = interpolate(ctx.rng.normal_like("guided noise", fake), fake, r)
        losses = cross_entropy(ctx.players["classifier"](fake, r), batch.y, reduction="none")
        # A mask, as shapes must not depend on times. Where a loss is not finite its gradient is not, although
        # masked; but a classifier that has diverged spoils every row, and a bad point the transport too.
        return p.weight * torch.where((r >= low) & (r <= high), losses, 0)

    def _length(self, t: Tensor, s: Tensor) -> Tensor:
        return (s - t).clamp(min=self.params.shortest)

    def _transport(self, ctx: Context) -> Tensor:
        """l in this step, ()."""
        p = self.params
        done = (ctx.step / p.transport_steps).clamp(max=1)
        return p.transport_end + (p.transport - p.transport_end) * (1 + torch.cos(math.pi * done)) / 2
