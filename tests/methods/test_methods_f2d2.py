"""F2D2: the flow map and its average divergence, and the likelihoods that follow from them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from configs import make_plan, raw_config
from conftest import STD, ExactMap, _q
from torch import nn

from fewstep import methods
from fewstep.config.settings import Sampler
from fewstep.config.specs import LikelihoodScoreSpec
from fewstep.core.divergence import divergence
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims, interpolate
from fewstep.core.rng import Streams
from fewstep.evaluation.likelihood import (
    _signs,
    average_rates,
    bits_per_dimension,
    check,
    log_likelihood,
    velocity_rates,
)
from fewstep.methods.f2d2.params import F2D2Params

SCALE = 7.0
FORMS = {
    "shortcut": F2D2Params(scale=SCALE, grid=1024, trace="exact"),
    "meanflow": F2D2Params(form="meanflow", scale=SCALE, trace="exact"),
    "probed": F2D2Params(form="meanflow", scale=SCALE),
}


def mean_log_growth(t, s):
    """Average over [t, s] of div v along the flow of the Gaussian, (B,): sum of log q(s) / q(t), over s - t.

    At s = t its limit, the sum of q'(t) / q(t).
    """
    t, s = (time[:, None, None, None] for time in (t, s))
    gap = torch.where(s == t, 1.0, s - t)
    limit = (STD**2 * t - (1 - t)) / _q(t) ** 2
    each = torch.where(s == t, limit, (_q(s) / _q(t)).log() / gap)
    return each.flatten(1).sum(1)


class ExactPair(ExactMap):
    """The exact flow map of a Gaussian and its average divergence, plus `off` times sin(3 t + 5 s)."""

    def __init__(self, perturbation=0.0, off=0.0):
        super().__init__(perturbation)
        self.off = nn.Parameter(torch.tensor(off, dtype=torch.float64))

    def forward(self, x, t, s, y):
        return super().forward(x, t, s, y), self.growth(t, s) / SCALE + self.off * torch.sin(3 * t + 5 * s)

    def growth(self, t, s):
        t, s = append_dims(t, STD[None]), append_dims(s, STD[None])
        return (
            ((STD**2 * (s + t) - (2 - s - t)) / (_q(s) + _q(t)) * log_quotient(_q(t), _q(s)))
            .flatten(1)
            .sum(1)
        )


def log_quotient(a, b):
    """(log b - log a) / (b - a), smooth at b = a by its series."""
    square = ((b - a) / (a + b)) ** 2
    series = torch.zeros_like(square)
    for k in reversed(range(60)):
        series = series * square + 1 / (2 * k + 1)
    return 2 / (a + b) * series


def context():
    truth = ExactMap().requires_grad_(False)
    return Context(
        step=torch.tensor(0, dtype=torch.float64),
        steps=10,
        rng=Streams(0, 0, 256, slice(None)),
        null=1,
        jvp=value_and_tangent,
        teacher=lambda x, t, y: truth(x, t, t, y),
        teacher_net=truth,
    )


def test_exact_average_is_that_of_the_closed_form():
    t, s = torch.rand(2, 256, dtype=torch.float64)
    s[:8] = t[:8]
    torch.testing.assert_close(ExactPair().growth(t, s), mean_log_growth(t, s), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_residuals_vanish_at_the_exact_pair_only(form, gaussian_batch):
    """A diagonal Jacobian: its probe of random signs is exact as well."""

    def evaluate(*off):
        return methods.build(FORMS[form]).loss(ExactPair(*off), gaussian_batch, context())

    # The smallest jump of a shortcut is one of Euler.
    assert evaluate().loss.item() < (1e-6 if form == "shortcut" else 1e-20)
    assert evaluate(0.1, 0.0).loss.item() > 1e-4 and evaluate(0.0, 0.1).loss.item() > 1e-4


def test_exact_and_probed_divergences_are_those_of_autograd(tiny, tiny_batch):
    net, batch = (
        tiny("f2d2").double(),
        Batch(*(z.double() for z in (tiny_batch.x1, tiny_batch.x0)), tiny_batch.y),
    )
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    probe = Streams(0, 0, 8, slice(None)).signs_like("probe", batch.x1)
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, t, t, batch.y)[0].sum(0), batch.x1)
    jacobian = jacobian.permute(3, 0, 1, 2, 4, 5, 6).reshape(8, 32, 32)
    v, exact = divergence(value_and_tangent, net, batch.x1, t, batch.y, None)
    torch.testing.assert_close(v, net(batch.x1, t, t, batch.y)[0].detach())
    torch.testing.assert_close(exact, torch.einsum("bii->b", jacobian), rtol=1e-10, atol=1e-12)
    _, probed = divergence(value_and_tangent, net, batch.x1, t, batch.y, probe)
    e = probe.flatten(1)
    torch.testing.assert_close(probed, torch.einsum("bi,bij,bj->b", e, jacobian, e), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", ["shortcut", "meanflow"])
def test_objective_is_that_of_the_equations(form, tiny, tiny_batch):
    """Value and gradients in float64, from the equations row by row, the derivative by torch.func."""
    params = F2D2Params(form=form, scale=SCALE, grid=8, divergence_weight=3.0)
    net, rng = tiny("f2d2").double(), Streams(3, 0, 8, slice(None))
    batch = Batch(tiny_batch.x1.double(), tiny_batch.x0.double(), tiny_batch.y)
    teacher = tiny("meanflow").double().requires_grad_(False)
    ctx = Context(
        step=torch.tensor(0.0),
        steps=10,
        rng=Streams(3, 0, 8, slice(None)),
        null=3,
        jvp=value_and_tangent,
        teacher=lambda x, t, y: teacher(x, t, t, y),
        teacher_net=teacher,
    )
    found = methods.build(params).loss(net, batch, ctx).loss
    backward, e = rng.uniform("backward") < 0.5, rng.signs_like("probe", batch.x1)
    if form == "shortcut":
        inside = rng.spread(0.5).mask
        count = torch.where(inside, 2 ** rng.integers("size", 3), 8)
        start = ((rng.uniform("t") * count).floor() / count).double()
        end = start + 1 / count
    else:
        inside = ~(rng.uniform("equal") < 0.5)
        draws = torch.stack([rng.uniform("t"), rng.uniform("s")]).double()
        start = draws.amin(0)
        end = torch.where(inside, draws.amax(0), start)
    t, s = torch.where(backward, end, start), torch.where(backward, start, end)
    s = torch.where(inside, s, t)
    total = 0.0
    for row in range(8):
        x = interpolate(batch.x0, batch.x1, t)[row : row + 1]
        a, b, y = t[row : row + 1], s[row : row + 1], batch.y[row : row + 1]
        v, tangent = torch.func.jvp(lambda x, a=a, y=y: teacher(x, a, a, y), (x,), (e[row : row + 1],))
        div = (e[row] * tangent).sum() / SCALE
        if form == "meanflow":
            inputs, directions = (x, a, b), (v, torch.ones_like(a), torch.zeros_like(b))
            _, (dF, dD) = torch.func.jvp(lambda x, a, b, y=y: net(x, a, b, y), inputs, directions)
            goal = v + (b - a) * dF, div + (b - a) * dD
        elif inside[row]:
            m = (a + b) / 2
            # 1 / 4 is of two smallest jumps.
            ends = (a, m) if abs(abs(float(b - a)) - 0.25) < 1e-9 else (m, b)
            F1, D1 = net(x, a, ends[0], y)
            F2, D2 = net(x + (m - a) * F1, m, ends[1], y)
            goal = (F1 + F2) / 2, (D1 + D2) / 2
        else:
            goal = v, div
        F, D = net(x, a, b, y)
        total = total + (F - goal[0].detach()).square().mean() + 3 * (D - goal[1].detach()).square().sum()
    expected = total / 8
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for one, other in zip(
        torch.autograd.grad(found, net.parameters()),
        torch.autograd.grad(expected, net.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_likelihood_of_a_gaussian_by_exact_jumps(steps, gaussian_batch):
    """Exact in any number of jumps: that of N(0, STD^2)."""
    x1 = gaussian_batch.x1
    rates = average_rates(ExactPair(), gaussian_batch.y, SCALE)
    found = log_likelihood(Sampler(kind="jump"), rates, x1, steps)
    expected = torch.distributions.Normal(0.0, STD).log_prob(x1).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_likelihood_of_a_gaussian_by_many_steps(gaussian_batch):
    """Euler steps with the exact divergence approach it, to the first order."""
    x1, y = gaussian_batch.x1[:8], gaussian_batch.y[:8]
    expected = torch.distributions.Normal(0.0, STD).log_prob(x1).flatten(1).sum(1)
    rates = velocity_rates(ExactMap(), y, None)
    few, many = (log_likelihood(Sampler(kind="euler"), rates, x1, n) - expected for n in (200, 400))
    torch.testing.assert_close(few, 2 * many, rtol=0.1, atol=0.01)
    assert many.abs().max() < 0.2


def test_bits_of_uniform_bytes():
    """256 equally likely values are 8 bits: density 1/2 on [-1, 1]."""
    log_p = torch.full((3,), 5 * math.log(0.5), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dimension(log_p, 5), torch.full((3,), 8.0, dtype=torch.float64))


def test_probes_belong_to_the_image_and_the_time():
    """So that a likelihood depends neither on the number of processes nor on what is scored together."""
    x, t = torch.zeros(4, 1, 2, 2), torch.full((4,), 0.5)
    whole = _signs(0, range(4))(x, t)
    assert torch.equal(whole[2:], _signs(0, range(2, 4))(x[2:], t[2:]))
    assert not torch.equal(whole, _signs(0, range(4))(x, t / 2))
    assert set(whole.unique().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("part", "changes", "told"),
    [
        ("sampler", {"kind": "cm"}, "it has no way back to the noise"),
        ("sampler", {"guidance": "recipe"}, "a guided field has no density"),
        ("backbone", {"scalar": False}, "backbone.scalar is false, and jumps need its divergence"),
        ("latents", {"multiplier": 0.5}, "are no pixels between -1 and 1"),
    ],
)
def test_what_has_no_likelihood(part, changes, told):
    """One line, before a file is read."""
    plan = make_plan(raw_config("demo"))
    spec = plan.spec("score", "f2d2-distill/base/0/jump-2/digits-bpd")
    assert isinstance(spec, LikelihoodScoreSpec)
    check(spec, Path("model"))
    given = getattr(spec, part)
    if part == "latents":
        given = given.model_copy(update={"tokenizer": given.tokenizer.model_copy(update=changes)})
    else:
        given = given.model_copy(update=changes)
    with pytest.raises(ValueError, match=told):
        check(spec.model_copy(update={part: given}), Path("model"))
