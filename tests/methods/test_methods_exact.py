"""On linear-Gaussian data the flow map is known: every residual vanishes there, and not elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep import methods
from fewstep.methods.cd.params import CDParams
from fewstep.methods.decm.params import DECMParams
from fewstep.methods.facm.params import FACMParams
from fewstep.methods.flow_matching.params import FlowMatchingParams
from fewstep.methods.meanflow.params import MeanFlowParams
from fewstep.methods.scm.params import SCMParams

RAW = {"clamp": None, "beta": False, "norm_power": 0.0}
"""Without clamp and weights the loss is the mean of the squared, weighted residual."""

OBJECTIVES = {
    "flow_matching": FlowMatchingParams(cosine=True),
    "flow_matching expanded": FlowMatchingParams(expanded=True),
    "cd": CDParams(**RAW),
    "facm expanded": FACMParams(**RAW),
    "facm target": FACMParams(anchor="target", **RAW),
    "decm": DECMParams(**RAW),
    "meanflow": MeanFlowParams(norm_power=0.0),
    "meanflow equal": MeanFlowParams(norm_power=0.0, flow_matching_fraction=0.5),
    "scm": SCMParams(warmup=0, learned_weight=False),
}
for right, left in [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (1.0, 0.25)]:
    OBJECTIVES[f"n2n {right:g} {left:g}"] = DECMParams(
        fm=False, cm=False, weight_right=right, weight_left=left, r_max=0.3, **RAW
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_residual_vanishes_at_the_exact_map_only(name, exact_map, exact_context, gaussian_batch):
    for loss in methods.build(OBJECTIVES[name]).updates(0):
        exact = loss(exact_map(), gaussian_batch, exact_context())
        perturbed = loss(exact_map(0.1), gaussian_batch, exact_context())
        # The cosine term 1 - cos rounds to 1e-16; all else is a square of 1e-16.
        assert abs(exact.loss.item()) < 1e-15
        assert perturbed.loss.item() > 1e-4
        for key, value in exact.logs.items():
            if key.startswith("residual"):
                assert float(value) < 1e-14
                assert float(perturbed.logs[key]) > 1e-2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_map_is_stationary(name, exact_map, exact_context, gaussian_batch):
    net = exact_map()
    for loss in methods.build(OBJECTIVES[name]).updates(0):
        (gradient,) = torch.autograd.grad(loss(net, gaussian_batch, exact_context()).loss, net.parameters())
        assert abs(float(gradient)) < 1e-10


def test_the_default_weights_are_stationary_too(exact_map, exact_context, gaussian_batch):
    for params in (CDParams(), FACMParams(), DECMParams()):
        for loss in methods.build(params).updates(0):
            assert abs(loss(exact_map(), gaussian_batch, exact_context()).loss.item()) < 1e-12


def test_n2n_with_the_teacher_at_the_interpolant_is_not_zero_at_the_exact_map(
    exact_map, exact_context, gaussian_batch, monkeypatch
):
    """v_t of the data point instead of v_psi: lambda v_psi is replaced by something unrelated to the jump."""
    seen = []
    monkeypatch.setattr("fewstep.methods.decm.loss.rms", lambda g: seen.append(g) or g)
    params = DECMParams(fm=False, cm=False, n2n_target="interpolant", **RAW)
    (loss,) = methods.build(params).updates(0)
    loss(exact_map(), gaussian_batch, exact_context())
    # g is divided by lambda + gamma = 2; undivided, from r = 0 and for uniform t, its rms is 0.79.
    assert 2 * seen[0].square().mean().sqrt().item() == pytest.approx(0.79, abs=0.08)


def test_n2n_without_a_teacher_follows_its_own_right_end(exact_map, exact_context, gaussian_batch):
    """gamma = 0 leaves only the right end, where the exact map is its own teacher."""
    params = DECMParams(fm=False, cm=False, weight_left=0.0, **RAW)
    (loss,) = methods.build(params).updates(0)
    terms = loss(exact_map(), gaussian_batch, exact_context(taught=False))
    assert float(terms.logs["residual_n2n"]) < 1e-14


def test_conditional_velocity_regresses_to_the_exact_velocity(exact_map, exact_context, gaussian_batch):
    """E[(x1 - x0 - v) h(x_t)] = 0: without a teacher the gradient of flow matching vanishes on average."""
    net = exact_map()
    (loss,) = methods.build(FlowMatchingParams()).updates(0)
    gradients = []
    for step in range(40):
        terms = loss(net, gaussian_batch_of(step, gaussian_batch), exact_context(step, taught=False))
        gradients.append(float(torch.autograd.grad(terms.loss, net.parameters())[0]))
    mean, std = float(torch.tensor(gradients).mean()), float(torch.tensor(gradients).std())
    assert abs(mean) < 4 * std / math.sqrt(len(gradients))
    assert std < 0.1


def gaussian_batch_of(step, batch):
    draws = torch.Generator().manual_seed(step)
    scale = torch.linspace(0.3, 1.7, 6, dtype=torch.float64).reshape(3, 2, 1)
    x1 = scale * torch.randn(batch.x1.shape, generator=draws, dtype=torch.float64)
    x0 = torch.randn(batch.x1.shape, generator=draws, dtype=torch.float64)
    return type(batch)(x1=x1, x0=x0, y=batch.y)


def test_surrogate_gradient_of_n2n_is_the_limit_of_the_discrete_losses(
    exact_map, exact_context, gaussian_batch
):
    """Eq. 12 and its left-end twin for a small delta, weighted, against the regression with (t - r) / 2."""
    right, left, delta = 0.7, 0.3, 1e-5
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    params = DECMParams(
        fm=False,
        cm=False,
        weight_right=right,
        weight_left=left,
        n2n_weight="linear",
        r_max=0.0,
        **RAW,
    )
    (loss,) = methods.build(params).updates(0)
    (surrogate,) = torch.autograd.grad(loss(net, batch, ctx).loss, net.parameters())

    def f(x, a, b):
        return x + (b - a)[:, None, None, None] * net(x, a, b, batch.y)

    t = (ctx.rng.integers("t", 100).float() / 100).double()
    r, live = torch.zeros_like(t), t > 0
    with torch.no_grad():
        behind = f(batch.x0, r, t - delta)
        ahead = f(batch.x0 + delta * ctx.teacher(batch.x0, r, batch.y), r + delta, t)
        behind = behind + delta * ctx.teacher(behind, t - delta, batch.y)
    own = f(batch.x0, r, t)
    # Both gradients are then the mean of (t - r) g dF/dp, with g divided by lambda + gamma.
    discrete = right * (own - behind).square() + left * (own - ahead).square()
    weighted = discrete[live].mean() * live.double().mean() / (2 * delta * (right + left))
    (limit,) = torch.autograd.grad(weighted, net.parameters())
    assert float(surrogate) == pytest.approx(float(limit), rel=1e-3)
