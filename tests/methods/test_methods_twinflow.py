"""TwinFlow's two terms on one-dimensional Gaussians, where the velocities of both roles are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep import methods
from fewstep.config.objectives import Enhancement
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims
from fewstep.core.rng import Streams
from fewstep.methods.rcgm.params import RCGMParams
from fewstep.methods.twinflow.params import TwinFlowParams

MEAN, STD = 0.7, 0.5
ALL = {"share": 1.0, "target_decay": None, "target_warmup": False}


def gaussian_velocity(x, t, mean, std):
    t = append_dims(t, x)
    slope = (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2)
    return mean + slope * (x - t * mean)


class Linear(nn.Module):
    """G(x0) = a x0 + b, and exact velocities of data and of what it generates (from which nothing learns).

    The fake role has parameters of its own, slope and offset at the one time of the test, if given.
    """

    def __init__(self, a, b, fake=None):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.fake = None if fake is None else nn.Parameter(torch.tensor(fake, dtype=torch.float64))
        self.asked = []

    def forward(self, x, t, s, y):
        self.asked.append((t, s))
        if bool((t > 1).all()):
            assert torch.equal(t, s)
            if self.fake is not None:
                return self.fake[0] * x + self.fake[1]
            return gaussian_velocity(x, 2 - t, self.b.detach(), self.a.detach().abs())
        if bool((s == t).all()):
            return gaussian_velocity(x, t, MEAN, STD)
        assert bool((t == 0).all()) and bool((s == 1).all())
        return (self.a - 1) * x + self.b


class Quadrature:
    """Draws with exact first and second moments: for expectations of quadratic functions of two normals."""

    def __init__(self, t):
        self.t = t
        self.x0 = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
        self.noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).reshape(4, 1, 1, 1)

    def uniform(self, name):
        return torch.full((4,), self.t, dtype=torch.float64)

    def normal_like(self, name, x):
        return self.noise

    def spread(self, share):
        return Streams(0, 0, 4, slice(None)).spread(1.0)


def terms(net, t, **given):
    rng = Quadrature(t)
    batch = Batch(rng.x0, rng.x0, torch.zeros(4, dtype=torch.int64))
    ctx = Context(0, 1, rng, 1, value_and_tangent)
    (loss,) = methods.build(TwinFlowParams(**ALL, **given)).updates(0)
    return loss(net, batch, ctx)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize(("a", "b"), [(1.5, -1.0), (0.2, 0.7), (0.5, 2.0)])
def test_rectification_descends_the_divergence_at_each_noise_level(a, b, t):
    """t^2 / (1 - t) times the gradient of L_rectify / 2 is that of KL(fake || real)."""
    net = Linear(a, b)
    found = torch.autograd.grad(terms(net, t).loss, [net.a, net.b])
    free = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b)]
    fake, real = (t * free[0]) ** 2 + (1 - t) ** 2, (t * STD) ** 2 + (1 - t) ** 2
    distance = (t * (free[1] - MEAN)) ** 2
    kl = 0.5 * (math.log(real) - fake.log() + (fake + distance) / real - 1)
    for ours, theirs in zip(found, torch.autograd.grad(kl, free), strict=True):
        assert t**2 / (1 - t) * ours.item() / 2 == pytest.approx(theirs.item(), rel=1e-12, abs=1e-14)


def test_nothing_is_left_to_rectify_where_both_agree():
    logs = terms(Linear(STD, MEAN), 0.4).logs
    assert float(logs["loss_rectify"]) < 1e-30 and float(logs["gap_twin"]) < 1e-15
    assert float(terms(Linear(1.0, 0.0), 0.4).logs["gap_twin"]) > 0.1


@pytest.mark.parametrize("t", [0.1, 0.6])
def test_the_fake_role_learns_the_velocity_of_what_is_generated(t):
    """The closed form is where the gradient of L_adv vanishes."""
    a, b = 1.3, -0.4
    slope = (t * a**2 - (1 - t)) / (t**2 * a**2 + (1 - t) ** 2)
    for shift in (0.0, 0.1):
        net = Linear(a, b, fake=[slope + shift, b - slope * t * b - shift])
        (gradient,) = torch.autograd.grad(terms(net, t, rectify_weight=0.0).loss, [net.fake])
        assert (float(gradient.abs().max()) < 1e-14) == (shift == 0)


def test_descent_of_the_rectification_alone_ends_at_the_data():
    net = Linear(1.5, -1.0)
    for _ in range(300):
        gradients = [torch.autograd.grad(terms(net, t).loss, [net.a, net.b]) for t in (0.2, 0.5, 0.8)]
        with torch.no_grad():
            for weight, *slopes in zip((net.a, net.b), *gradients, strict=True):
                weight -= 0.1 * torch.stack(slopes).mean()
    assert net.a.item() == pytest.approx(STD, abs=1e-6)
    assert net.b.item() == pytest.approx(MEAN, abs=1e-6)


def test_what_the_roles_are_asked():
    """The generator at (0, 1); then the fake role beyond 1, and the velocity at the same time inside."""
    net = Linear(1.0, 0.0)
    terms(net, 0.3)
    (zero, one), (fake, same), (real, also) = [pair for pair in net.asked if len(pair[0])]
    assert set(zero.tolist()) == {0} and set(one.tolist()) == {1}
    assert set(fake.tolist()) == set(same.tolist()) == {2 - 0.3}
    assert set(real.tolist()) == set(also.tolist()) == {0.3}


def test_options_of_the_release():
    """Half the weight halves the gradient, a small clamp bounds it, the robust metric is near the root."""
    net = Linear(1.5, -1.0)

    def gradient(**given):
        return torch.autograd.grad(terms(net, 0.5, **given).loss, net.b)[0].item()

    assert gradient(rectify_weight=0.5) == pytest.approx(gradient() / 2)
    assert abs(gradient(rectify_clamp=1e-3)) == pytest.approx(2e-3)
    robust = methods.build(TwinFlowParams(metric="barron"))
    assert robust._metric(torch.tensor(0.01)).item() == pytest.approx(0.1005, rel=1e-3)


class TestSplit:
    @pytest.fixture
    def run(self, exact_map, exact_context, gaussian_batch):
        def take(net=None, **given):
            params = TwinFlowParams(enhance=Enhancement(zeta=1.0, beyond=1.0), **given)
            return methods.build(params).updates(0)[0](net or exact_map(0.2), gaussian_batch, exact_context())

        return take

    def test_without_a_share_it_is_rcgm(self, run, exact_map, exact_context, gaussian_batch):
        params = RCGMParams(enhance=Enhancement(zeta=1.0, beyond=1.0))
        theirs = methods.build(params).updates(0)[0](exact_map(0.2), gaussian_batch, exact_context())
        assert run(share=0.0).loss.item() == pytest.approx(theirs.loss.item(), rel=1e-14)

    def test_both_roles_agree_on_the_exact_map(self, run, exact_map):
        """Its velocity at 2 - t is that at t."""
        assert float(run(exact_map()).logs["gap_twin"]) == 0

    def test_base_everywhere(self, run):
        assert float(run(base_everywhere=True).logs["loss_base"]) > float(run().logs["loss_base"])

    def test_time_weight(self, run):
        """At least 1, and 4.08 where s = t: all rows are there with near = 1 and a tiny length."""
        near = {"near": 1.0, "near_length": 1e-6, "share": 0.0}
        ratio = run(time_weight=True, **near).loss / run(**near).loss
        assert ratio.item() == pytest.approx(math.tan(math.pi / 2.5) + 1, rel=1e-4)


def test_a_share_is_spread_over_the_batch():
    whole = Streams(0, 0, 12, slice(None))
    assert whole.spread(1 / 3).mask.tolist() == [False, False, True] * 4
    assert whole.spread(1 / 3).inside.tolist() == [2, 5, 8, 11]
    assert whole.spread(1 / 3).outside.tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert not len(whole.spread(0.0).inside) and not len(whole.spread(1.0).outside)
    part = Streams(5, 3, 12, slice(4, 8))
    assert torch.equal(part.spread(0.25).mask, whole.spread(0.25).mask[4:8])
    for share in (0.2, 1 / 3, 0.7):
        rows = Streams(0, 0, 3000, slice(None)).spread(share).mask
        counts = rows.reshape(100, 30).sum(1)
        assert int(counts.max()) - int(counts.min()) <= 1 and int(rows.sum()) == round(3000 * share)
