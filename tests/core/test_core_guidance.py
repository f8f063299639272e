from __future__ import annotations

import math

import pytest
import torch

from fewstep.config.settings import Guidance
from fewstep.core.guidance import ClassifierFreeGuidance, calibrate, guided_field

NULL = 3


class Counting(torch.nn.Module):
    """Delegates and notes the number of rows of each call."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x, t, s, y):
        self.rows.append(len(x))
        return self.inner(x, t, s, y)


@pytest.fixture
def point():
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 2, 2, generator=draws, dtype=torch.float64)
    t = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    return x, t, torch.arange(6) % 3


@pytest.fixture
def both(net, point):
    """Conditional and unconditional velocity, by two separate calls."""
    x, t, y = point
    with torch.no_grad():
        return net(x, t, t, y), net(x, t, t, torch.full_like(y, NULL))


@pytest.mark.parametrize("guidance", [None, Guidance(scale=1.0), Guidance(scale=1.0, normalise="unit")])
def test_no_guidance_is_the_conditional_field_in_one_pass(guidance, net, point, both):
    counting = Counting(net)
    assert torch.equal(ClassifierFreeGuidance(counting, guidance, NULL)(*point), both[0])
    assert counting.rows == [6]


def test_guidance_extrapolates_in_one_batch(net, point, both):
    counting = Counting(net)
    velocity = ClassifierFreeGuidance(counting, Guidance(scale=1.75), NULL)(*point)
    torch.testing.assert_close(velocity, both[0] + 0.75 * (both[0] - both[1]))
    assert counting.rows == [12] and not velocity.requires_grad


def test_scale_zero_is_the_unconditional_field(net, point, both):
    torch.testing.assert_close(ClassifierFreeGuidance(net, Guidance(scale=0.0), NULL)(*point), both[1])


def test_interval_includes_its_ends_and_masks_by_sample(net, point, both):
    counting = Counting(net)
    velocity = ClassifierFreeGuidance(counting, Guidance(scale=3.0, interval=[0.2, 0.9]), NULL)(*point)
    assert counting.rows == [12], "of fixed shape, whatever the times are"
    inside = torch.tensor([False, False, True, True, True, False])
    torch.testing.assert_close(velocity[~inside], both[0][~inside])
    torch.testing.assert_close(velocity[inside], (3 * both[0] - 2 * both[1])[inside])


def test_a_sampler_skips_the_unconditional_pass_outside_the_interval(net, point):
    x, _, y = point
    counting = Counting(lambda x, *_: x)
    field = guided_field(counting, Guidance(scale=3.0, interval=[0.15, 0.7]), NULL, y)
    # Compared in float32, in which the network is given its times.
    for now in (0.1, 0.15, 0.5, math.nextafter(0.7, 1), 0.71):
        field(x, now, now)
    assert counting.rows == [6, 12, 12, 12, 6]


def test_channels(net, point, both):
    velocity = ClassifierFreeGuidance(net, Guidance(scale=3.0, channels=2), NULL)(*point)
    torch.testing.assert_close(velocity[:, 2:], both[0][:, 2:])
    torch.testing.assert_close(velocity[:, :2], (3 * both[0] - 2 * both[1])[:, :2])


def test_normalisation(net, point, both):
    difference = both[0] - both[1]
    norms = difference.flatten(1).norm(dim=1)
    eta = float(norms.median())
    unit = ClassifierFreeGuidance(net, Guidance(scale=2.0, normalise="unit", eta=eta), NULL)(*point) - both[0]
    torch.testing.assert_close(unit.flatten(1).norm(dim=1), torch.full_like(norms, eta), rtol=1e-5, atol=0)
    rescaled = (
        ClassifierFreeGuidance(net, Guidance(scale=2.0, normalise="rescale"), NULL, eta)(*point) - both[0]
    )
    torch.testing.assert_close(rescaled.flatten(1).norm(dim=1), norms.clamp(max=eta), rtol=1e-5, atol=0)
    short = norms < eta
    torch.testing.assert_close(rescaled[short], difference[short])


def test_equal_predictions_stay_finite(point):
    velocity = ClassifierFreeGuidance(
        lambda x, t, s, y: x, Guidance(scale=2.0, normalise="unit", eta=1.0), NULL
    )(*point)
    assert torch.equal(velocity, point[0])


def test_calibration_summarises_the_norms_inside_the_interval(net, point, both):
    norms = (both[0] - both[1]).flatten(1).norm(dim=1)[2:5]
    for rule, expected in (("mean", norms.mean()), ("p90", norms.double().quantile(0.9))):
        guidance = Guidance(scale=2.0, interval=[0.2, 0.9], normalise="rescale", eta=rule)
        for rows in (1, 2, 64):
            assert calibrate(net, guidance, NULL, *point, rows=rows) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match=r"interval \[0.2, 0.9\]"):
        calibrate(net, guidance, NULL, *(z[:2] for z in point))


def test_missing_calibration_is_refused(net):
    with pytest.raises(ValueError, match="calibrate"):
        ClassifierFreeGuidance(net, Guidance(scale=2.0, normalise="rescale"), NULL)


def test_guided_field_serves_any_target_time(net, point):
    x, y, net = point[0].float(), point[2], net.float()  # times are float32
    field = guided_field(net, Guidance(scale=1.5), NULL, y)
    t, s = torch.full((6,), 0.25), torch.ones(6)
    with torch.no_grad():
        conditional, unconditional = net(x, t, s, y), net(x, t, s, torch.full_like(y, NULL))
    torch.testing.assert_close(field(x, 0.25, 1.0), 1.5 * conditional - 0.5 * unconditional)


def test_half_precision_outputs_are_combined_in_float32(point):
    x, t, y = point
    velocity = ClassifierFreeGuidance(lambda x, t, s, y: x.bfloat16(), Guidance(scale=2.0), NULL)(x, t, y)
    assert velocity.dtype == torch.float32
