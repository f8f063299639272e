"""Signs and weights: the gradient of each objective, written out by hand, at a wrong flow map.

The network is the exact map plus p * phi with phi = sin(3 x + 2 t + 5 s), so dF/dp = phi and the
gradient of a regression to sg(F) - w g is the mean of 2 beta w g phi.
"""

from __future__ import annotations

import math

import pytest
import torch

from fewstep import methods
from fewstep.config.objectives import TimeDistribution
from fewstep.core.jvp import value_and_tangent
from fewstep.core.path import append_dims, interpolate
from fewstep.methods.cd.params import CDParams
from fewstep.methods.decm.params import DECMParams
from fewstep.methods.meanflow.params import MeanFlowParams
from fewstep.methods.scm.params import SCMParams

RAW = {"clamp": None, "norm_power": 0.0}


@pytest.fixture
def problem(exact_map, exact_context, gaussian_batch):
    net = exact_map(0.4)

    def gradient(params, ctx=None):
        loss = methods.build(params).updates(0)[-1]
        return torch.autograd.grad(loss(net, gaussian_batch, ctx or exact_context()).loss, net.parameters())[
            0
        ]

    return net, gaussian_batch, exact_context(), gradient


def phi(x, t, s):
    return torch.sin(3 * x + 2 * append_dims(t, x) + 5 * append_dims(s, x))


def left_residual(net, batch, ctx, t, s):
    """x_t, and g = F - v - (s - t) dF by the reference formulation, tangents not scaled beforehand."""
    x = interpolate(batch.x0, batch.x1, t)
    v = ctx.teacher(x, t, batch.y)
    tangents = (v, torch.ones_like(t), torch.zeros_like(t))
    F, dF = value_and_tangent(net, (x, t, s), tangents, batch.y, "functorch")
    return x, F.detach() - v - append_dims(s - t, x) * dF


def segments(ctx):
    return (ctx.rng.integers("t", 100).float() / 100).double()


def by_hand(weight, g, slope):
    return (2 * append_dims(weight, g) * g * slope).mean()


def test_consistency(problem):
    net, batch, ctx, gradient = problem
    t = segments(ctx)
    s = torch.ones_like(t)
    x, g = left_residual(net, batch, ctx, t, s)
    weight = torch.cos(math.pi / 2 * t) * (1 - t.sqrt())
    expected = by_hand(weight, g, phi(x, t, s))
    torch.testing.assert_close(gradient(CDParams(**RAW)), expected)
    clamped = by_hand(weight, g.clamp(-0.5, 0.5), phi(x, t, s))
    torch.testing.assert_close(gradient(CDParams(clamp=0.5, norm_power=0.0)), clamped)
    assert abs(float(clamped / expected)) < 0.9


def test_consistency_with_adaptive_weight(problem):
    """Each row is divided by (e + c)^p, e the mean square of the moved distance."""
    net, batch, ctx, gradient = problem
    t = segments(ctx)
    s, alpha = torch.ones_like(t), 1 - t.sqrt()
    x, g = left_residual(net, batch, ctx, t, s)
    g = g.clamp(-1, 1)
    e = (append_dims(alpha, g) * g).square().flatten(1).mean(1)
    weight = torch.cos(math.pi / 2 * t) * alpha / (e + 1e-3).sqrt()
    torch.testing.assert_close(gradient(CDParams()), by_hand(weight, g, phi(x, t, s)))


def test_noise_to_noisy(problem):
    net, batch, ctx, gradient = problem
    t = segments(ctx)
    r = torch.zeros_like(t)
    x, left = left_residual(net, batch, ctx, r, t)
    still, one = torch.zeros_like(t), torch.ones_like(t)
    F, F_s = value_and_tangent(net, (x, r, t), (torch.zeros_like(x), still, one), batch.y, "functorch")
    landed = x + append_dims(t, x) * F.detach()
    right = F.detach() + append_dims(t, x) * F_s - ctx.teacher(landed, t, batch.y)
    g = (0.7 * right + 0.3 * left) / (0.7 + 0.3)
    params = {"fm": False, "cm": False, "r_max": 0.0, "weight_right": 0.7, "weight_left": 0.3, **RAW}
    for law, weight in {"root": 1 - (1 - t).sqrt(), "linear": t / 2}.items():
        expected = by_hand(weight, g, phi(x, r, t))
        torch.testing.assert_close(gradient(DECMParams(n2n_weight=law, **params)), expected)


def test_meanflow(problem):
    net, batch, ctx, gradient = problem
    draws = torch.stack([ctx.rng.uniform("t"), ctx.rng.uniform("s")]).double()
    t, s = draws.min(0).values, draws.max(0).values
    x, g = left_residual(net, batch, ctx, t, s)
    params = MeanFlowParams(times=TimeDistribution(), norm_power=0.0)
    torch.testing.assert_close(gradient(params), by_hand(torch.ones_like(t), g, phi(x, t, s)))


def test_scm(problem, exact_context):
    """With the log-variance at w the regression counts exp(-w), and w itself is added."""
    net, batch, ctx, gradient = problem
    t = ctx.rng.uniform("t").double()
    s = torch.ones_like(t)
    x, g = left_residual(net, batch, ctx, t, s)
    g = append_dims(torch.cos(math.pi / 2 * t), g) * g
    g = g / (append_dims(g.square().flatten(1).mean(1).sqrt(), g) + 0.1)
    expected = by_hand(torch.ones_like(t), g, phi(x, t, s))
    params = {"times": TimeDistribution(), "warmup": 0}
    plain = SCMParams(learned_weight=False, **params)
    weighted = SCMParams(**params)
    torch.testing.assert_close(gradient(plain), expected)
    taught = exact_context(extra=lambda t: torch.full_like(t, 0.7))
    torch.testing.assert_close(gradient(weighted, taught), math.exp(-0.7) * expected)
    (loss,) = methods.build(weighted).updates(0)
    total = loss(net, batch, taught).loss.item()
    assert total == pytest.approx(math.exp(-0.7) * g.square().mean().item() + 0.7)
