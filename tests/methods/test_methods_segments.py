"""UCGM and RCGM on linear-Gaussian data: residuals to their orders, and gradients written out."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from fewstep import methods
from fewstep.config.objectives import Enhancement, TimeDistribution
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims, interpolate
from fewstep.core.rng import Streams
from fewstep.core.segments import Start, central_residual, chain_residual, end_times, sine_gain
from fewstep.methods.flow_matching.params import FlowMatchingParams
from fewstep.methods.rcgm.params import RCGMParams
from fewstep.methods.twinflow.params import TwinFlowParams
from fewstep.methods.ucgm.params import UCGMParams

TAUGHT = Enhancement(zeta=1.0, beyond=1.0)
"""v is the teacher's, everywhere: on a single sample's x1 - x0 residuals vanish on average only."""
PLAIN = {"gain": "unit", "clip": None, "huber": None}


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.fixture
def start(gaussian_batch, exact_context):
    """Points of the path away from the data with the exact velocity, and ends beyond them."""
    t = torch.linspace(0.02, 0.7, len(gaussian_batch.y), dtype=torch.float64)
    x = interpolate(gaussian_batch.x0, gaussian_batch.x1, t)
    return Start(x, t, exact_context().teacher(x, t, gaussian_batch.y), gaussian_batch.y), (1 + t) / 2


def halving(residual, steps):
    sizes = [rms(residual(step)) for step in steps]
    return [coarse / fine for coarse, fine in pairwise(sizes)]


class TestChain:
    def xi(self, net, start, segments, delta):
        at, s = start
        return chain_residual(net(at.x, at.t, s, at.y), at, s, net, segments, delta)

    def test_first_order_at_the_exact_map(self, exact_map, start):
        net = exact_map()
        ratios = halving(lambda delta: self.xi(net, start, 2, delta), [0.02, 0.01, 0.005])
        assert ratios == pytest.approx([2, 2], rel=0.03)
        assert rms(self.xi(exact_map(0.1), start, 2, 0.005)) > 20 * rms(self.xi(net, start, 2, 0.005))

    def test_no_matter_how_many_segments(self, exact_map, start):
        one, *others = [self.xi(exact_map(), start, n, 0.01) for n in (1, 2, 3, 4)]
        assert all(rms(other - one) < 1e-11 for other in others)
        one, other = [self.xi(exact_map(0.2), start, n, 0.01) for n in (1, 2)]
        assert rms(other - one) > 0.01

    def test_the_bracket_by_hand(self, exact_map, start):
        """Two segments, as printed: xi = v - [(s - t) u - sum of the jumps] / delta."""
        net, (at, s), delta = exact_map(0.3), start, 0.01
        first = at.t + delta
        middle = (first + s) / 2
        x1 = at.x + delta * at.v
        jump1 = append_dims(middle - first, x1) * net(x1, first, middle, at.y)
        jump2 = append_dims(s - middle, x1) * net(x1 + jump1, middle, s, at.y)
        u = net(at.x, at.t, s, at.y)
        expected = at.v - (append_dims(s - at.t, u) * u - jump1 - jump2) / delta
        torch.testing.assert_close(self.xi(net, start, 2, delta), expected.detach(), rtol=0, atol=1e-11)

    def test_short_rows_are_flow_matching(self, exact_map, start):
        net, (at, _) = exact_map(0.3), start
        for gap in (0.0, 0.01, 0.02):
            u = net(at.x, at.t, at.t + gap, at.y).detach()
            xi = chain_residual(u, at, at.t + gap, net, 2, 0.02)
            torch.testing.assert_close(xi, at.v - u, rtol=0, atol=1e-12)

    def test_the_network_that_learns_gets_no_gradient_through_it(self, exact_map, start):
        assert not self.xi(exact_map(0.1), start, 2, 0.01).requires_grad


def test_central_difference_is_second_order(exact_map, start):
    at, _ = start
    ratios = halving(lambda e: central_residual(at, exact_map(), e), [0.02, 0.01, 0.005, 0.0025])
    assert ratios == pytest.approx([4, 4, 4], rel=0.02)
    assert rms(central_residual(at, exact_map(), 0.005)) < 1e-3
    assert rms(central_residual(at, exact_map(0.1), 0.005)) > 0.05


def test_central_difference_is_the_derivative_of_the_prediction(exact_map, start):
    """xi -> v - u + (1 - t) dF/dt along (v, 1)."""
    net, (at, _) = exact_map(0.3), start
    one = torch.ones_like(at.t)
    inputs, tangents = (at.x, at.t, one), (at.v, one, torch.zeros_like(one))
    u, du = value_and_tangent(net, inputs, tangents, at.y, "functorch")
    expected = at.v - u.detach() + append_dims(1 - at.t, u) * du
    assert rms(central_residual(at, net, 1e-4) - expected) < 1e-6


def test_central_difference_stays_inside(exact_map, start, gaussian_batch):
    asked = []

    class Spy(nn.Module):
        def forward(self, x, t, s, y):
            asked.append(t)
            return exact_map()(x, t, s, y)

    t = torch.tensor([0.0, 0.001, 0.5, 0.999, 1.0], dtype=torch.float64)
    x = interpolate(gaussian_batch.x0[:5], gaussian_batch.x1[:5], t)
    xi = central_residual(Start(x, t, torch.zeros_like(x), gaussian_batch.y[:5]), Spy(), 0.005)
    assert torch.isfinite(xi).all()
    assert float(torch.stack(asked).min()) == 0 and float(torch.stack(asked).max()) == 1


def test_the_sine_gain():
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    gain, weight = sine_gain(t)
    assert gain.tolist() == pytest.approx([4.0, 2 / 0.70683, 4 / 1.57], rel=1e-4)
    assert weight.tolist() == pytest.approx([0.0, 0.7074, 1.0], abs=1e-3)


def test_ends_lie_between_the_time_and_the_data():
    rng = Streams(0, 0, 4000, slice(None))
    t = rng.uniform("t")
    share = (end_times(t, rng, 0.0, 0.05) - t) / (1 - t)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.03) and float(share.max()) <= 1 + 1e-5
    near = (end_times(t, rng, 0.5, 0.05) - t) / (1 - t)
    assert float((near < 0.0501).float().mean()) == pytest.approx(0.525, abs=0.03)


@pytest.fixture
def gradient(exact_map, exact_context, gaussian_batch):
    """Of an objective at a wrong map, and of any other number of the same network."""

    def take(params, net=None, other=None):
        net = net or exact_map(0.4)
        ctx = exact_context()
        loss = methods.build(params).updates(0)[0](net, gaussian_batch, ctx).loss if params else other(net)
        return torch.autograd.grad(loss, net.parameters())[0].item()

    return take


class TestUCGM:
    @pytest.mark.parametrize("ratio", [0.3, 0.9])
    def test_the_consistency_gradient_three_ways(self, ratio, gradient, exact_context, gaussian_batch):
        """Raw |f - f'|^2 over (1 - t)^2, Theorem 1's surrogate, and the residual's rule with gain 1 - l."""
        ctx, batch = exact_context(), gaussian_batch
        t = ctx.rng.uniform("t").double()
        one = torch.ones_like(t)
        x = interpolate(batch.x0, batch.x1, t)
        v, t2 = ctx.teacher(x, t, batch.y), 1 - ratio * (1 - t)
        x2 = x + append_dims(t2 - t, x) * v

        def raw(net):
            f = x + append_dims(1 - t, x) * net(x, t, one, batch.y)
            f2 = x2 + append_dims(1 - t2, x) * net(x2, t2, one, batch.y).detach()
            return (append_dims(1 / (1 - t), x) * (f - f2)).square().mean()

        def surrogate(net):
            u, u2 = net(x, t, one, batch.y), net(x2, t2, one, batch.y).detach()
            return ((1 - ratio) * (u - v).square() + ratio * (u - u2).square()).mean()

        expected = gradient(None, other=raw)
        assert gradient(None, other=surrogate) == pytest.approx(expected, rel=1e-10)
        uniform = TimeDistribution()
        params = UCGMParams(ratio=ratio, times=uniform, enhance=TAUGHT, **{**PLAIN, "gain": "ratio"})
        # The shares of one residual nearly cancel where l is near 1.
        assert gradient(params) == pytest.approx(expected, rel=1e-8)

    def test_ratio_zero_is_flow_matching(self, gradient):
        uniform = TimeDistribution()
        ours = UCGMParams(ratio=0.0, times=uniform, enhance=TAUGHT, **PLAIN)
        theirs = FlowMatchingParams(times=uniform)
        assert gradient(ours) == pytest.approx(gradient(theirs), rel=1e-12)

    @pytest.mark.parametrize(("huber", "cosine"), [(None, False), (0.0, True)])
    def test_the_first_stage_is_flow_matching_with_the_cosine_weight(self, huber, cosine, tiny, tiny_batch):
        """The gradient of every weight, with the network's own guidance and dropped labels.

        The target is far away, so that a clip of the residual would show.
        """
        net, average = tiny("ucgm").double(), tiny("ucgm").double()
        batch = Batch(4 * tiny_batch.x1.double(), tiny_batch.x0.double(), tiny_batch.y)
        ctx = Context(
            0, 1, Streams(0, 0, 8, slice(None)), 3, value_and_tangent, target=average, label_dropout=0.3
        )
        with torch.no_grad():
            for weight in average.parameters():
                weight.mul_(0.7)
        own = Enhancement(reference="own", difference="online", zeta=0.47)
        params = UCGMParams(ratio=0.0, times=TimeDistribution(), enhance=own, huber=huber, cosine=cosine)
        loss = methods.build(params).updates(0)[0](net, batch, ctx).loss
        found = torch.autograd.grad(loss, list(net.parameters()))

        t, gone = ctx.rng.uniform("t").double(), ctx.rng.uniform("label_dropout") < 0.3
        assert 0 < int(gone.sum()) < 8 and (t < 0.25).any()
        y, null = torch.where(gone, 3, batch.y), torch.full_like(batch.y, 3)
        x, line = interpolate(batch.x0, batch.x1, t), batch.x1 - batch.x0
        u = net(x, t, t, y)
        conditional, unconditional = u.detach(), average(x, t, t, null).detach()
        v = torch.where(
            append_dims(gone, x),
            (line + unconditional) / 2,
            torch.where(
                append_dims(t < 0.25, x),
                (line + conditional) / 2,
                line + 0.47 * (conditional - unconditional),
            ),
        )
        assert float((u - v).detach().abs().max()) > 4
        error = (u - v).square().flatten(1).mean(1)
        error = error if huber is None else error.sqrt()
        if cosine:
            angle = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
            error = error + (1 - angle).mean((1, 2))
        expected = torch.autograd.grad((torch.cos(1.57 * (1 - t)) * error).mean(), list(net.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("huber", [None, 0.0, 5.0])
    def test_by_hand(self, huber, gradient, exact_map, exact_context, gaussian_batch):
        """With every factor; h(E) of a mean square E has the slope 1 / (2 h + 2 c)."""
        net, ctx, batch = exact_map(0.4), exact_context(), gaussian_batch
        t = ctx.rng.uniform("t").double()
        one, x = torch.ones_like(t), interpolate(batch.x0, batch.x1, t)
        at = Start(x, t, ctx.teacher(x, t, batch.y), batch.y)
        gain, weight = sine_gain(t)
        move = append_dims(gain, x) * central_residual(at, net, 0.005).clamp(-0.5, 0.5)
        e = move.square().flatten(1).mean(1)
        slope = one if huber is None else 1 / (2 * (e + huber**2).sqrt())
        phi = torch.sin(3 * x + append_dims(2 * t + 5, x))
        expected = (append_dims(-2 * weight * slope, x) * move * phi).mean().item()
        params = UCGMParams(times=TimeDistribution(), enhance=TAUGHT, clip=0.5, huber=huber)
        assert gradient(params, net) == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("ratio", [0.999, 1.0])
    def test_residual_at_the_exact_map_only(self, ratio, exact_map, exact_context, gaussian_batch):
        params = UCGMParams(ratio=ratio, times=TimeDistribution(), enhance=TAUGHT)
        (loss,) = methods.build(params).updates(0)
        exact, wrong = (
            float(loss(exact_map(p), gaussian_batch, exact_context()).logs["residual_ucgm"]) for p in (0, 0.1)
        )
        assert exact < 5e-3 < 0.05 < wrong

    def test_what_the_network_is_asked(self, tiny_batch):
        asked = []

        class Spy(nn.Module):
            def forward(self, x, t, s, y):
                asked.append((t, s))
                return x

        for ratio in (0.0, 0.5, 1.0):
            asked.clear()
            ctx = Context(0, 1, Streams(0, 0, 8, slice(None)), 3, value_and_tangent)
            methods.build(UCGMParams(ratio=ratio)).updates(0)[0](Spy(), tiny_batch, ctx)
            assert len(asked) == {0.0: 1, 0.5: 2, 1.0: 3}[ratio]
            assert all(torch.equal(s, t if ratio == 0 else torch.ones_like(t)) for t, s in asked)


class TestRCGM:
    @pytest.mark.parametrize("near", [0.0, 0.5])
    def test_by_hand(self, near, gradient, exact_map, exact_context, gaussian_batch):
        net, ctx, batch = exact_map(0.4), exact_context(), gaussian_batch
        t = ctx.rng.uniform("t").double()
        s = end_times(t, ctx.rng, near, 0.05)
        x = interpolate(batch.x0, batch.x1, t)
        at = Start(x, t, ctx.teacher(x, t, batch.y), batch.y)
        xi = chain_residual(net(x, t, s, batch.y), at, s, net, 3, 0.02).clamp(-1, 1)
        phi = torch.sin(3 * x + append_dims(2 * t + 5 * s, x))
        params = RCGMParams(segments=3, delta=0.02, enhance=TAUGHT, near=near)
        assert gradient(params, net) == pytest.approx((-2 * xi * phi).mean().item(), rel=1e-9)

    def test_the_target_jumps_if_there_is_one(self, exact_map, exact_context, gaussian_batch):
        ctx = exact_context()
        ctx.target = exact_map()
        params = RCGMParams(enhance=TAUGHT, clip=None)
        loss = methods.build(params).updates(0)[0]
        with_target = loss(exact_map(0.1), gaussian_batch, ctx).loss.item()
        assert with_target != loss(exact_map(0.1), gaussian_batch, exact_context()).loss.item()

    def test_what_target_it_asks_for(self):
        assert methods.build(RCGMParams()).target_decay == 0.999
        online = methods.build(RCGMParams(segments=1, target_decay=None))
        assert online.target_decay is None and not online.target_warmup
        assert methods.build(TwinFlowParams()).target_warmup
