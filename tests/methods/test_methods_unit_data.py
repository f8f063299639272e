"""TCM, iCT and CTM are made for data of deviation 1/2; beside data of deviation 1 they have the same effect.

Beside data of deviation 1/2 a level s is t = 1 / (1 + 2 s). The laws of s are written here with the constants
of the papers and releases, and compared with the times that the objectives ask for.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from jump_factories import Recorder
from scipy import stats
from torch import nn

from fewstep import methods
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.rng import Streams
from fewstep.methods.ctm.params import CTMParams
from fewstep.methods.ict.params import ICTParams
from fewstep.methods.tcm.params import TCMParams

ROWS, DRAWS = 20_000, 200_000
"""Of ours, and of the release's law."""
CRITICAL = math.sqrt(-math.log(0.01 / 2) / 2 * (1 / ROWS + 1 / DRAWS))
"""Of the two-sample Kolmogorov-Smirnov distance at the level of 1 %."""


def karras(points):
    ramp = np.linspace(0, 1, points)
    return (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7


def tcm_first(draws):
    """Normal of ln s, truncated."""
    low, high = ((math.log(s) + 0.8) / 1.6 for s in (0.002, 80))
    return np.exp(stats.truncnorm.rvs(low, high, loc=-0.8, scale=1.6, size=DRAWS, random_state=draws))


def tcm_second(draws):
    """Student's t of ln s with 0.01 degrees of freedom, truncated."""
    low, high = stats.t.cdf([0, math.log(80) / 0.2], 0.01)
    return np.exp(0.2 * stats.t.ppf(draws.uniform(low, high, DRAWS), 0.01))


def ict(draws):
    """The noisy ends of intervals of a grid with 1281 points, by the mass of a normal of ln s."""
    levels = karras(1281)
    mass = -np.diff(stats.norm.cdf((np.log(levels) + 1.1) / 2.0))
    return levels[draws.choice(1280, DRAWS, p=mass / mass.sum())]


def ctm(draws):
    return karras(40)[draws.integers(0, 39, DRAWS)]


def ctm_score(draws):
    return np.exp(-1.2 + 1.2 * draws.standard_normal(DRAWS))


class Zero(nn.Module):
    def forward(self, x, t, s, y):
        return torch.zeros_like(x)


def asked_times(params, call=0):
    """The times of a call of the network that learns, at the last training step."""
    net, zeros = Recorder(Zero()), torch.zeros(ROWS, 1, 1, 1, dtype=torch.float64)
    ctx = Context(
        torch.tensor(99.0, dtype=torch.float64), 100, Streams(0, 99, ROWS, slice(None)), 1, value_and_tangent
    )
    ctx.target = ctx.teacher_net = Zero()
    (loss,) = methods.build(params).updates(99)
    loss(net, Batch(zeros, zeros, torch.zeros(ROWS, dtype=torch.int64)), ctx)
    return net.asked[call][1]


@pytest.mark.parametrize(
    ("params", "call", "law"),
    [
        (TCMParams(), 0, tcm_first),
        (TCMParams(boundary=1 / 3), 0, tcm_second),
        (ICTParams(), 0, ict),
        (CTMParams(), 0, ctm),
        (CTMParams(), 1, ctm_score),
    ],
    ids=["tcm, stage 1", "tcm, stage 2", "ict", "ctm", "ctm, score matching"],
)
def test_the_law_of_t_is_the_release_s(params, call, law):
    t = asked_times(params, call).numpy()
    if law is tcm_second:
        t = t[np.abs(t - 1 / 3) > 1e-6]  # the rows at the boundary itself
    t[t == 0] = 1 / (1 + 2 * 80)  # the end of a grid, which is moved
    expected = 1 / (1 + 2 * law(np.random.default_rng(0)))
    # Rounded, since levels of a grid are drawn many times each.
    assert stats.ks_2samp(t.round(9), expected.round(9)).statistic < CRITICAL


def test_the_step_of_tcm_is_the_release_s():
    """s falls by the share times 1 + 8 / (1 + e^s)."""
    t = torch.tensor([0.05, 0.2, 0.5, 0.8], dtype=torch.float64)
    s = (1 - t) / t / 2
    r = methods.build(TCMParams()).nearer(t, torch.tensor(20_000.0))
    torch.testing.assert_close((1 - r) / r / 2, s - s * (1 + 8 / (1 + torch.exp(s))) / 64)


@pytest.mark.parametrize(("params", "c"), [(TCMParams(), 0.06 / math.sqrt(12_288)), (ICTParams(), 0.00054)])
def test_the_pseudo_huber_constant_beside_root_mean_squares(params, c):
    """Distances are twice as long as beside data of deviation 1/2."""
    assert params.huber == pytest.approx(2 * c, rel=0.005)
