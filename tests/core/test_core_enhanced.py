from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.config.objectives import Enhancement
from fewstep.core.enhanced import EnhancedSample, blend, share
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims, interpolate
from fewstep.core.rng import Streams

ROWS = 64


class Field(nn.Module):
    """A velocity that depends on time and label; ``shift`` sets two of them apart."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, x, t, s, y):
        assert torch.equal(t, s)
        return torch.sin(x + append_dims(t + y.to(x.dtype), x)) + self.shift


@pytest.fixture
def batch():
    draws = torch.Generator().manual_seed(0)
    x1, x0 = torch.randn(2, ROWS, 3, 2, 2, generator=draws, dtype=torch.float64)
    return Batch(x1, x0, torch.arange(ROWS) % 4)


def context(teacher=None, target=None, dropout=0.0):
    return Context(
        0, 1, Streams(0, 0, ROWS, slice(None)), 4, value_and_tangent, teacher, None, target, dropout
    )


def field_of(net):
    return lambda x, t, y: net(x, t, t, y)


T = torch.linspace(0, 1, ROWS, dtype=torch.float64)


def test_the_moved_pair_is_the_line_with_the_blended_velocity(batch):
    """x*, z* of UCGM, section 3.1, in our convention: x_t + (1 - t) F and x_t - t F are f^x and f^z."""
    zeta, t = 1.7, T
    x = interpolate(batch.x0, batch.x1, t)
    F = Field(0.0)(x, t, t, batch.y)
    data = batch.x1 + zeta * (x + append_dims(1 - t, x) * F - batch.x1)
    noise = batch.x0 + zeta * (x - append_dims(t, x) * F - batch.x0)
    torch.testing.assert_close(interpolate(noise, data, t), x, rtol=0, atol=1e-14)
    v = blend(batch.x1 - batch.x0, F, torch.full_like(t, zeta))
    torch.testing.assert_close(data - noise, v, rtol=0, atol=1e-13)


def test_the_window():
    weights = share(Enhancement(zeta=2.0), T)
    assert set(weights[T < 0.25].tolist()) == {0.5}
    assert set(weights[T >= 0.25].tolist()) == {2.0}


def test_a_teacher_moves_all_rows_but_those_without_label(batch):
    teacher = Field(1.0)
    e = Enhancement(zeta=2.0, beyond=0.4)
    point = EnhancedSample(batch, context(field_of(teacher), dropout=0.3), T, e, Field(9.0))
    line = batch.x1 - batch.x0
    gone = point.y == 4
    assert 0 < int(gone.sum()) < ROWS
    assert torch.equal(point.v[gone], line[gone])
    told = teacher(point.x, T, T, point.y)
    weight = append_dims(torch.where(T < 0.25, 0.4, 2.0), line)
    torch.testing.assert_close(point.v[~gone], ((1 - weight) * line + weight * told)[~gone])
    assert torch.equal(EnhancedSample(batch, context(), T, None, teacher).v, line)


@pytest.mark.parametrize("reference", ["own", "teacher"])
@pytest.mark.parametrize("difference", ["online", "reference"])
def test_what_is_guided_away_from_the_prediction_without_label(reference, difference, batch):
    """Rows without label follow the reference's prediction without label, half of the way."""
    net, average, teacher = Field(0.3), Field(-0.2), Field(0.7)
    e = Enhancement(reference=reference, difference=difference, zeta=0.44)
    ctx = context(teacher=field_of(teacher), target=average, dropout=0.3)
    point = EnhancedSample(batch, ctx, T, e, net)
    line, gone = batch.x1 - batch.x0, point.y == 4
    assert 0 < int(gone.sum()) < ROWS
    told = {"own": average, "teacher": teacher}[reference]
    conditional = (net if difference == "online" else told)(point.x, T, T, point.y)
    unconditional = told(point.x, T, T, torch.full_like(batch.y, 4))
    inside = ~gone & (T >= 0.25)
    torch.testing.assert_close(point.v[inside], (line + 0.44 * (conditional - unconditional))[inside])
    below = ~gone & (T < 0.25)
    torch.testing.assert_close(point.v[below], ((line + conditional) / 2)[below])
    torch.testing.assert_close(point.v[gone], ((line + unconditional) / 2)[gone])


def test_without_average_or_teacher_the_network_is_its_own_reference(batch):
    net = Field(0.3)
    e = Enhancement(reference="own", difference="online", zeta=0.44)
    point = EnhancedSample(batch, context(), T, e, net)
    inside = T >= 0.25
    guided = point.line + 0.44 * (
        net(point.x, T, T, batch.y) - net(point.x, T, T, torch.full_like(batch.y, 4))
    )
    torch.testing.assert_close(point.v[inside], guided[inside])


def test_a_missing_teacher_is_named(batch):
    with pytest.raises(ValueError, match=r"enhance\.reference: teacher needs a teacher"):
        _ = EnhancedSample(batch, context(), T, Enhancement(zeta=1.0), Field(0.0)).v
