"""TVM, FreeFlow and flow-map self-distillation, each against its equations written anew in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewstep import methods
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.rng import Streams
from fewstep.methods.fmsd.params import FMSDParams
from fewstep.methods.freeflow.params import FreeFlowParams
from fewstep.methods.tvm.params import TVMParams

RESIDUALS = {"tvm": TVMParams(), "freeflow": FreeFlowParams(norm_power=0.0)}
EXACT = RESIDUALS | {
    f"{objective} {middle}": FMSDParams(objective=objective, middle=middle, flow_matching_fraction=0.3)
    for objective, middle in [("lsd", "half"), ("esd", "half"), ("psd", "half"), ("psd", "uniform")]
}


class Constant(nn.Module):
    """The same velocity everywhere, plus something of the times."""

    def __init__(self, bend: float = 0.0):
        super().__init__()
        self.bend = nn.Parameter(torch.tensor(bend, dtype=torch.float64))

    def forward(self, x, t, s, y):
        return 0.7 + self.bend * (s + t * x.flatten(1).mean(1))[:, None, None, None] + 0 * x


def across(times):
    return times[:, None, None, None]


def loss_of(params, net, batch, ctx):
    (loss,) = methods.build(params).updates(int(ctx.step))
    return loss(net, batch, ctx)


def teacher(x, t, y):
    return torch.sin(x + across(t) + across(y))


@pytest.fixture
def doubles(tiny, tiny_batch):
    """A network, a moving average of it, a batch, and a context for them, in float64."""
    net = tiny("fmsd").double()
    average = copy.deepcopy(net).requires_grad_(False)
    for weight in average.parameters():
        weight.mul_(0.9)
    batch = Batch(tiny_batch.x1.double(), tiny_batch.x0.double(), tiny_batch.y)

    def context(taught=True, dropout=0.0):
        return Context(
            step=torch.tensor(3.0, dtype=torch.float64),
            steps=10,
            rng=Streams(5, 3, 8, slice(None)),
            null=3,
            jvp=value_and_tangent,
            teacher=teacher if taught else None,
            target=average,
            label_dropout=dropout,
        )

    return net, average, batch, context


def assert_same_gradients(net, got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(*(torch.autograd.grad(each, net.parameters()) for each in (got, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def along(net, x, t, s, y, dx, dt, ds):
    """The derivative by torch.func, with its graph."""
    return torch.func.jvp(lambda x, t, s: net(x, t, s, y), (x, t, s), (dx, dt, ds))[1]


def per_row(x):
    return x.square().flatten(1).mean(1)


@pytest.mark.parametrize("name", EXACT)
def test_zero_at_the_flow_map_of_a_gaussian_only(name, exact_map, taught, gaussian_batch):
    def residuals(net):
        logs = loss_of(EXACT[name], net, gaussian_batch, taught()).logs
        return [float(value) for key, value in logs.items() if key.startswith("residual")]

    assert max(residuals(exact_map())) < 1e-12
    assert min(residuals(exact_map(0.1))) > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_zero_at_a_constant_velocity(name, taught, gaussian_batch):
    def terms(bend):
        ctx = taught()
        ctx.teacher = lambda x, t, y: torch.full_like(x, 0.7)
        ctx.target = Constant(bend).requires_grad_(False)
        logs = loss_of(EXACT[name], Constant(bend), gaussian_batch, ctx).logs
        return [float(value) for key, value in logs.items() if key != "loss_online"]

    assert max(map(abs, terms(0.0))) < 1e-14
    assert max(terms(0.5)) > 1e-2


@pytest.mark.parametrize("objective", ["lsd", "esd", "psd"])
def test_self_distillation_by_hand(objective, doubles):
    net, _, batch, context = doubles
    ctx, y = context(), batch.y
    got = loss_of(FMSDParams(objective=objective, flow_matching_fraction=0.5), net, batch, ctx).loss
    one, two = ctx.rng.uniform("t").double(), ctx.rng.uniform("s").double()
    still = ctx.rng.spread(0.5).mask
    t, s = torch.minimum(one, two), torch.where(still, torch.minimum(one, two), torch.maximum(one, two))
    gap, x = s - t, across(t) * batch.x1 + across(1 - t) * batch.x0
    F, zero, unit = net(x, t, s, y), torch.zeros_like(x), torch.ones_like(t)
    f = x + across(gap) * F
    if objective == "lsd":  # the end of the jump moves with the velocity there
        target = net(f, s, s, y) - across(gap) * along(net, x, t, s, y, zero, 0 * t, unit)
    elif objective == "esd":  # the jump's landing does not change along the velocity of its start
        u = net(x, t, t, y).detach()
        target = u + across(gap) * along(net, x, t, s, y, u, unit, 0 * t)
    else:
        m = (t + s) / 2
        half = x + across(gap) / 2 * net(x, t, m, y)
        target = (net(x, t, m, y) + net(half, m, s, y)) / 2
    target = torch.where(across(still), teacher(x, t, y), target).detach()
    assert_same_gradients(net, got, per_row(F - target).mean())


def tvm_by_hand(net, average, batch, ctx, scale, slope):
    """The released loss; ``slope`` (x, t, s) is dF/ds as it is differentiated."""
    rng, y = ctx.rng, batch.y
    t, s = (each.double() for each in methods.build(TVMParams())._interval(ctx))
    instant = torch.sigmoid(0.4 + rng.normal("velocity")).double()
    if ctx.label_dropout and not ctx.teacher:
        y = torch.where(rng.uniform("label_dropout") < ctx.label_dropout, ctx.null, y)

    def at(times):
        return across(times) * batch.x1 + across(1 - times) * batch.x0

    x, here = at(t), at(instant)
    F = net(x, t, s, y)
    moved = F + across(s - t) * slope(x, t, s, y)
    there = average((x + across(s - t) * F).detach(), s, s, y)
    if ctx.teacher:
        v, w = teacher(here, instant, y), torch.ones_like(t)
    else:
        w = torch.where(y == ctx.null, 1.0, scale).double()
        free = average(here, instant, instant, torch.full_like(y, ctx.null))
        v = across(w) * (batch.x1 - batch.x0) + across(1 - w) * free
    terms = per_row(moved - there) + per_row(net(here, instant, instant, y) - v)
    return (terms / w**2).mean()


@pytest.mark.parametrize("taught", [True, False])
def test_tvm_by_hand(taught, doubles):
    net, average, batch, context = doubles
    ctx = context(taught, dropout=0.4)

    def held(x, t, s, y):
        return along(net, x, t, s, y, torch.zeros_like(x), 0 * t, torch.ones_like(t)).detach()

    got = loss_of(TVMParams(step=None, scale=1.75), net, batch, ctx).loss
    assert_same_gradients(net, got, tvm_by_hand(net, average, batch, ctx, 1.75, held))


def test_tvm_has_the_gradient_of_its_derivative(doubles):
    """To second order in the step that of the second-order derivative, which the release takes."""
    net, average, batch, context = doubles
    ctx = context()

    def whole(x, t, s, y):
        return along(net, x, t, s, y, torch.zeros_like(x), 0 * t, torch.ones_like(t))

    def gradient(loss):
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])

    truth = gradient(tvm_by_hand(net, average, batch, ctx, 1.0, whole))

    def error(step):
        found = gradient(loss_of(TVMParams(step=step), net, batch, ctx).loss)
        return float((found - truth).norm() / truth.norm())

    assert error(None) > 1e-2
    assert error(5e-3) < 1e-5
    assert error(0.08) / error(0.04) == pytest.approx(4, rel=0.1)


def test_tvm_draws_the_end_from_what_the_gap_leaves(taught):
    """The release's own clock: noise at 1, the gap below it, sigma of a normal law cut at logit(1 - gap)."""
    ctx = taught()
    t, s = methods.build(TVMParams())._interval(ctx)
    normal = torch.distributions.Normal(0.0, 1.0)
    gap = torch.sigmoid(-0.8 + ctx.rng.normal("gap")).double()
    cut = normal.cdf(torch.log((1 - gap) / gap) + 0.4)
    sigma = torch.sigmoid(-0.4 + normal.icdf(cut * (1 - ctx.rng.uniform("s").double())))
    torch.testing.assert_close(t.double(), 1 - sigma - gap, rtol=0, atol=1e-6)
    torch.testing.assert_close(s.double(), 1 - sigma, rtol=0, atol=1e-6)
    assert float(t.min()) >= 0 and float(s.max()) <= 1
    # Where hardly anything is cut, s has its whole law.
    tiny_gap = TVMParams(gaps={"law": "logit-normal", "mean": -20.0, "std": 0.1})
    _, s = methods.build(tiny_gap)._interval(ctx)
    assert float(torch.logit(s.double()).mean()) == pytest.approx(0.4, abs=0.2)


def freeflow_by_hand(net, batch, ctx, share, k):
    rng, z, y = ctx.rng, batch.x0, batch.y
    ends = rng.spread(share).mask
    delta = torch.where(ends, 1.0, rng.uniform("s").double())
    nought = torch.zeros_like(delta)
    F = net(z, nought, delta, y)
    f = (z + across(delta) * F).detach()
    slope = along(net, z, nought, delta, y, torch.zeros_like(z), nought, torch.ones_like(nought))
    prediction = F + across(delta) * slope - teacher(f, delta, y)
    r = torch.sigmoid(-0.8 + rng.normal("r")).double()
    n = rng.normal_like("noise", z)
    noised = across(r) * f + across(1 - r) * n
    online = net(noised, 2 - r, 2 - r, y)
    correction = online - teacher(noised, r, y)
    g = torch.where(across(ends), correction, prediction).detach()
    e = per_row(g)
    # The gradient of F . g, weighted, as the paper has it.
    pull = (2 * (F * g).flatten(1).mean(1) / (e + 1e-2) ** k).mean()
    return pull + per_row(online - (f - n)).where(ends, 0).mean()


@pytest.mark.parametrize("k", [0.0, 0.5, 1.0])
def test_freeflow_by_hand(k, doubles):
    net, _, batch, context = doubles
    ctx = context()
    got = loss_of(FreeFlowParams(norm_power=k), net, batch, ctx).loss
    expected = freeflow_by_hand(net, batch, ctx, 0.25, k)
    pairs = zip(*(torch.autograd.grad(each, net.parameters()) for each in (got, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_freeflow_never_looks_at_data(doubles):
    net, _, batch, context = doubles

    def gradients(x1):
        loss = loss_of(FreeFlowParams(), net, Batch(x1, batch.x0, batch.y), context()).loss
        return torch.autograd.grad(loss, net.parameters())

    unknown = torch.full_like(batch.x1, torch.nan)
    for one, other in zip(gradients(batch.x1), gradients(unknown), strict=True):
        assert torch.equal(one, other)
