"""AFM against the paper's equations, computed anew in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.rng import Draw, Streams
from fewstep.methods import build
from fewstep.methods.afm.params import AFMParams

ROWS, SHAPE = 8, (2, 3, 3)
PENALISED = [3, 7]
"""A quarter of the rows, evenly spread."""


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, -0.7, 0.2], dtype=torch.float64))

    def forward(self, x, t, s, y):
        a, b, c = self.weights
        return a * x.sin() + (b * t + c * s * (y + 1)).view(-1, 1, 1, 1) * x

    def critic(self) -> nn.Module:
        return Discriminator()


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, 0.4], dtype=torch.float64))

    def forward(self, x, t, y):
        a, b = self.weights
        return (a * x.tanh() + b * (x * (1 + t + y).view(-1, 1, 1, 1)).cos()).flatten(1).sum(1)


def case(average=0.0, step=3.0):
    draws = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, ROWS, *SHAPE, generator=draws, dtype=torch.float64)
    batch = Batch(x1, x0, torch.arange(ROWS) % 3)
    ctx = Context(
        step=torch.tensor(step, dtype=torch.float64),
        steps=10,
        rng=Streams(3, 1, ROWS, slice(None)),
        null=3,
        jvp=value_and_tangent,
        players={"discriminator": Discriminator()},
        averages={"gradient_square": torch.tensor(average, dtype=torch.float64)},
    )
    return Generator(), batch, ctx


def drawn(kind, name, shape=()):
    return Draw(kind, name, shape=shape).make(3, 1, ROWS).double()


def points(net, batch):
    """The paper's own times: tau = 1 is noise, and the target is u tau."""
    tau = 1 - drawn("uniform", "t")
    end = drawn("uniform", "s") * tau
    wide, far = tau.view(-1, 1, 1, 1), end.view(-1, 1, 1, 1)
    x = (1 - wide) * batch.x1 + wide * batch.x0
    fake = x - (far - wide) * net(x, 1 - tau, 1 - end, batch.y)
    real = (1 - far) * batch.x1 + far * drawn("normal", "target", SHAPE)
    return tau, end, x, fake, real


def test_the_discriminators_loss():
    net, batch, ctx = case()
    critic = ctx.players["discriminator"]
    terms = build(AFMParams()).discriminate(net, batch, ctx)
    tau, end, _, fake, real = points(net, batch)
    fake = fake.detach()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(ROWS):
        one = slice(row, row + 1)

        def value(x, one=one):
            return critic(x, 1 - end[one], batch.y[one])[0]

        r, f = value(real[one]), value(fake[one])
        total = total + (torch.log1p(torch.exp(f - r)) + 0.01 * (r + f) ** 2) / ROWS
        if row in PENALISED:
            for points_, name, here in ((real, "near real", r), (fake, "near fake", f)):
                near = value(points_[one] + 0.01 * drawn("normal", name, SHAPE)[one])
                total = total + 0.25 * max(float(tau[row] - end[row]), 1e-3) * ((near - here) / 0.01) ** 2 / 2
    torch.testing.assert_close(terms.loss, total, rtol=1e-10, atol=0)
    ours, expected = (torch.autograd.grad(loss, critic.weights)[0] for loss in (terms.loss, total))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("average", [0.0, 2.5])
def test_the_generators_loss(average):
    """Its adversarial gradient is divided by the root of the average, and left out before there is one."""
    net, batch, ctx = case(average)
    critic, p = ctx.players["discriminator"], AFMParams(transport_steps=10)
    terms = build(p).generate(net, batch, ctx)
    tau, end, x, fake, real = points(net, batch)
    adversarial = torch.log1p(
        torch.exp(critic(real, 1 - end, batch.y) - critic(fake, 1 - end, batch.y))
    ).mean()
    weight = 0.005 + (0.25 - 0.005) * (1 + math.cos(math.pi * 0.3)) / 2
    squares = (fake - x).square().flatten(1).mean(1)
    transport = (weight / (tau - end).clamp(min=1e-3) * squares).mean()
    torch.testing.assert_close(terms.loss, adversarial + transport, rtol=1e-10, atol=0)
    (at_fake,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
    torch.testing.assert_close(
        terms.measured["gradient_square"], at_fake.square().sum() * at_fake.numel(), rtol=1e-10, atol=0
    )
    scale = average**-0.5 if average else 0.0
    expected = torch.autograd.grad(scale * adversarial + transport, net.weights)[0]
    ours = torch.autograd.grad(terms.loss, net.weights)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_transport_falls_to_its_end():
    method = build(AFMParams(transport_steps=10))
    found = [float(method._transport(case(step=step)[2])) for step in (0.0, 5.0, 10.0, 30.0)]
    assert found == pytest.approx([0.25, 0.1275, 0.005, 0.005])


def test_jumps_of_equal_steps():
    t, s = build(AFMParams(steps=4)).times(*case()[1:])
    assert set(t.tolist()) <= {0.0, 0.25, 0.5, 0.75} and torch.equal(s, t + 0.25)


def test_players_say_only_what_differs():
    given = AFMParams.model_validate({"name": "afm", "players": {"discriminator": {"lr": 0.5}}})
    assert given.players["discriminator"].lr == 0.5
    assert given.players["discriminator"].betas == AFMParams().players["discriminator"].betas == [0.0, 0.9]
    with pytest.raises(ValueError, match="players: no 'critic'; there is discriminator"):
        AFMParams.model_validate({"name": "afm", "players": {"critic": {}}})


class Guide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(7)
        self.weights = nn.Parameter(torch.randn(3, 18, generator=draws, dtype=torch.float64))

    def forward(self, x, t):
        return (x.flatten(1) * (1 + t[:, None])).tanh() @ self.weights.T


def negative_log_probability(guide, x, t, y):
    """Of the label of each row, (B,)."""
    exponentials = guide(x, t).exp()
    return -(exponentials / exponentials.sum(1, keepdim=True)).log()[range(ROWS), y]


def test_the_classifier_learns_points_of_the_path():
    net, batch, ctx = case()
    guide = ctx.players["classifier"] = Guide()
    method = build(AFMParams.model_validate({"name": "afm", "classifier": {}}))
    tau = (1 - drawn("uniform", "classified t")).view(-1, 1, 1, 1)
    x = (1 - tau) * batch.x1 + tau * batch.x0
    expected = negative_log_probability(guide, x, 1 - tau.flatten(), batch.y).mean()
    terms = method.classify(net, batch, ctx)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("guidance", "guided"),
    [
        ({"weight": 0.4, "times": [0.5, 0.8]}, True),
        ({"weight": 0.4, "times": [0.5, 0.8], "renoise": False}, True),
        ({"start": 3}, True),
        ({"start": 4}, False),
    ],
)
def test_guidance_adds_the_classifiers_loss_at_what_is_made(guidance, guided):
    net, batch, ctx = case()  # of step 3
    guide = ctx.players["classifier"] = Guide()
    plain, p = AFMParams(), AFMParams.model_validate({"name": "afm", "classifier": guidance})
    assert p.classifier is not None
    if not guided:
        del ctx.players["classifier"]  # before it guides, it is not asked
    ours, without = (build(each).updates(3)[-1](net, batch, ctx) for each in (p, plain))
    assert ("loss_classifier" in ours.logs) == guided
    _, end, _, fake, _ = points(net, batch)
    low, high = p.classifier.times
    noise_time, inside = end, (end <= 1 - low) & (end >= 1 - high)
    if p.classifier.renoise:
        noise_time = (1 - high) + (high - low) * (1 - drawn("uniform", "guided t"))
        wide = noise_time.view(-1, 1, 1, 1)
        fake = (1 - wide) * fake + wide * drawn("normal", "guided noise", SHAPE)
        inside = torch.ones(ROWS, dtype=torch.bool)
    else:
        assert 0 < inside.sum() < ROWS
    losses = negative_log_probability(guide, fake, 1 - noise_time, batch.y)
    added = guided * p.classifier.weight * (losses * inside).mean()
    torch.testing.assert_close(ours.loss, without.loss + added, rtol=1e-10, atol=0)
    expected = torch.autograd.grad(without.loss + added, net.weights)[0]
    torch.testing.assert_close(
        torch.autograd.grad(ours.loss, net.weights)[0], expected, rtol=1e-9, atol=1e-12
    )


def test_guidance_brings_a_player_with_it():
    p = AFMParams.model_validate({"name": "afm", "classifier": {"optimizer": {"lr": 0.5}}})
    assert {name: each.lr for name, each in p.optimizers.items()} == {
        "discriminator": 1e-4,
        "classifier": 0.5,
    }
    assert p.optimizers["classifier"].betas == [0.9, 0.95]
    assert AFMParams().optimizers.keys() == {"discriminator"} and "classifier" not in AFMParams().model_dump()
    assert [turn.player for turn in build(p).updates(0)[:2]] == ["classifier", "discriminator"]
    with pytest.raises(ValueError, match="must rise"):
        AFMParams.model_validate({"name": "afm", "classifier": {"times": [1.0, 0.9]}})
