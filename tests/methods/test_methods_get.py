"""KD as GET has it: EDM's solver, and absolute distances of all iterates (arXiv 2401.08639, 2206.00364)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from conftest import STD
from torch import nn

from fewstep import methods
from fewstep.methods.kd.params import KDParams

GET = KDParams(solver_times="karras", solver_steps=5, distance="l1", iterate_decay=0.8)


class Iterates(nn.Module):
    """The exact map, with an error that halves from one of three iterates to the next."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact
        self.error = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x, t, s, y, iterates=False):
        found = torch.stack([self.exact(x, t, s, y) + self.error / 2**k * x.cos() for k in range(3)])
        return found if iterates else found[-1]


def solve(steps: int, x0: torch.Tensor, lowest: float, highest: float, heun: bool = True) -> torch.Tensor:
    """EDM's Algorithm 1 with the exact denoiser of independent Gaussians."""
    sevenths = torch.linspace(highest ** (1 / 7), lowest ** (1 / 7), steps, dtype=torch.float64)
    levels = [*(sevenths**7).tolist(), 0.0]

    def slope(z, sigma):
        denoised = z * STD**2 / (STD**2 + sigma**2)
        return (z - denoised) / sigma

    z = levels[0] * x0
    for now, after in pairwise(levels):
        d = slope(z, now)
        moved = z + (after - now) * d
        if heun and after:
            moved = z + (after - now) * (d / 2 + slope(moved, after) / 2)
        z = moved
    return z


def evaluate(params, net, batch, ctx):
    return methods.build(params).loss(net, batch, ctx)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_it_is_the_weighted_sum_over_the_iterates(solver, exact_map, exact_context, gaussian_batch):
    """Value and gradient, to 1e-10."""
    net, batch = Iterates(exact_map()), gaussian_batch
    terms = evaluate(GET.model_copy(update={"solver": solver}), net, batch, exact_context())
    target = solve(5, batch.x0, 0.004, 160.0, solver == "heun") - batch.x0
    t = torch.zeros(len(batch.x0), dtype=torch.float64)
    value, slope = 0.0, 0.0
    for k, weight in enumerate((0.64, 0.8, 1.0)):
        g = net.exact(batch.x0, t, t + 1, batch.y) + 0.3 / 2**k * batch.x0.cos() - target
        value = value + weight * g.abs().mean()
        slope = slope + weight * (g.sign() * batch.x0.cos() / 2**k).mean()
    torch.testing.assert_close(terms.loss, value, rtol=1e-10, atol=1e-10)
    (found,) = torch.autograd.grad(terms.loss, [net.error])
    torch.testing.assert_close(found, slope, rtol=1e-10, atol=1e-10)


def test_without_a_decay_the_last_iterate_alone_counts(exact_map, exact_context, gaussian_batch):
    net, batch = Iterates(exact_map()), gaussian_batch
    params = KDParams(solver_times="karras", solver_steps=5)
    loss = evaluate(params, net, batch, exact_context()).loss
    t = torch.zeros(len(batch.x0), dtype=torch.float64)
    g = net(batch.x0, t, t + 1, batch.y) - (solve(5, batch.x0, 0.004, 160.0) - batch.x0)
    torch.testing.assert_close(loss, g.square().mean(), rtol=1e-10, atol=1e-10)


def test_karras_times_end_near_the_solution(exact_map, exact_context, gaussian_batch):
    """Of second order until the ends of the levels are felt: x0 is taken for x at the first of them."""

    def residual(steps, sigma=(1e-4, 1e4)):
        params = KDParams(solver_times="karras", solver_steps=steps, sigma=list(sigma))
        return float(evaluate(params, exact_map(), gaussian_batch, exact_context()).logs["residual_kd"])

    assert residual(80) / residual(160) == pytest.approx(4, rel=0.15)
    assert residual(18, (0.004, 160.0)) < 0.06 < residual(9, (0.004, 160.0))


def test_the_teacher_is_asked_as_often_as_edm_asks(exact_map, exact_context, gaussian_batch):
    asked, ctx = [], exact_context()
    truth = ctx.teacher

    def listening(x, t, y):
        asked.append(float(t[0]))
        return truth(x, t, y)

    ctx.teacher = listening
    evaluate(KDParams(solver_times="karras", solver_steps=18), exact_map(), gaussian_batch, ctx)
    assert len(asked) == 35
    assert asked[0] == pytest.approx(1 / 161) and asked[-1] == pytest.approx(1 / 1.004)
    assert asked == sorted(asked)
