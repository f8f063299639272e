"""Networks with two outputs: which one answers, in the field, under guidance and in tangents."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.config.settings import Guidance, Sampler
from fewstep.core.guidance import guided_field
from fewstep.core.heads import average_velocity
from fewstep.core.jvp import FORMULATIONS, value_and_tangent
from fewstep.evaluation.samplers import integrate


class TwoHeads(nn.Module):
    """Velocity 2 x + y, flow map to the data -x t + y."""

    def forward(self, x, t, s, y):
        label = y[:, None, None, None].to(x.dtype)
        return 2 * x + label, -x * t[:, None, None, None] + label


@pytest.fixture
def point():
    draws = torch.Generator().manual_seed(0)
    return torch.randn(4, 2, 3, 3, generator=draws), torch.tensor([0.0, 0.3, 0.3, 1.0]), torch.zeros(4).long()


def test_the_times_choose_the_output_row_by_row(point):
    x, t, y = point
    s = torch.tensor([0.0, 1.0, 0.3, 1.0])
    velocity, flow_map = TwoHeads()(x, t, s, y)
    found = average_velocity(TwoHeads(), x, t, s, y)
    assert torch.equal(found[[0, 2, 3]], velocity[[0, 2, 3]]) and torch.equal(found[1], flow_map[1])
    half = average_velocity(lambda *given: tuple(z.half() for z in TwoHeads()(*given)), x, t, s, y)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_tangents_come_in_pairs_too(formulation, point):
    x, t, y = (z.double() if z.is_floating_point() else z for z in point)
    directions = (torch.ones_like(x), torch.full_like(t, 2.0), torch.zeros_like(t))
    values, tangents = value_and_tangent(TwoHeads(), (x, t, t), directions, y, formulation)
    for value, expected in zip(values, TwoHeads()(x, t, t, y), strict=True):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangents[0], torch.full_like(x, 2.0))
    torch.testing.assert_close(tangents[1], -t[:, None, None, None] - 2 * x)


def test_guidance_is_of_the_output_asked_for(point):
    x, _, y = point
    field = guided_field(TwoHeads(), Guidance(scale=3.0), 5, y)
    # v_c - v_u is -5 for both outputs
    torch.testing.assert_close(field(x, 0.5, 0.5), 2 * x - 10)
    torch.testing.assert_close(field(x, 0.5, 2.0), -0.5 * x - 10)


def test_euler_follows_the_velocity_and_cm_the_flow_map(point):
    x, _, y = point
    field = guided_field(TwoHeads(), None, 5, y)

    def run(kind, steps):
        return integrate(Sampler(kind=kind), field, x, steps, lambda step: torch.zeros_like(x))

    torch.testing.assert_close(run("euler", 2), 4 * x)
    # to the data at once; then from half of it
    torch.testing.assert_close(run("cm", 2), 0.5 * x + 0.5 * (-0.5 * 0.5 * x))
