"""DiT as a velocity field: steps, a Gaussian with known answers, and the published forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from configs import behind, make_plan, raw_config
from test_backbones_sit import PATH, SIT, TINY, forward, published

from fewstep.backbones import build
from fewstep.backbones.import_weights import import_weights
from fewstep.backbones.lightningdit import LightningDiT as Network
from fewstep.backbones.lightningdit import diffusion_step
from fewstep.config import ConfigError
from fewstep.config.backbones import LightningDiT
from fewstep.config.base import merge
from fewstep.core.jvp import value_and_tangent
from fewstep.plan import Plan

DIT = LightningDiT(**TINY, **SIT, predicts="noise")
KEPT = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
A, B = np.sqrt(KEPT), np.sqrt(1 - KEPT)
TIMES = torch.from_numpy(A / (A + B))
"""Of the trained steps."""


def test_trained_steps_and_those_between() -> None:
    k, t = diffusion_step(TIMES)
    torch.testing.assert_close(k, torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(t, TIMES, rtol=1e-9, atol=0)
    assert TIMES[[999, 0]].tolist() == pytest.approx([0.0063, 0.9901], abs=1e-4)
    between, _ = diffusion_step((TIMES[1:] + TIMES[:-1]) / 2)
    assert ((between > torch.arange(999)) & (between < torch.arange(1, 1000))).all()
    k, t = diffusion_step(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(k, torch.tensor([999.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(t, TIMES[[999, 0]])


def exact_noise(mean: float, std: float):
    """E[e | z] at step k for Gaussian data, k between steps by its own interpolation."""

    def forward(self, z, k, s, y):
        ratio = torch.from_numpy(np.exp(np.interp(k.numpy(), np.arange(1000), np.log(A / B))))
        a, b = ratio / torch.hypot(ratio, torch.ones(())), 1 / torch.hypot(ratio, torch.ones(()))
        a, b = (each[:, None, None, None] for each in (a, b))
        return b * (z - a * mean) / (a**2 * std**2 + b**2)

    return forward


@pytest.mark.parametrize("times", [TIMES[::37], torch.linspace(0.007, 0.989, 41, dtype=torch.float64)])
def test_velocity_of_a_gaussian_is_the_exact_one(monkeypatch, times) -> None:
    mean, std = 0.7, 1.6
    net = build(DIT).double()
    monkeypatch.setattr(Network, "forward", exact_noise(mean, std))
    x = 2 * torch.randn(len(times), 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = times[:, None, None, None]
    slope = (t * std**2 - (1 - t)) / (t**2 * std**2 + (1 - t) ** 2)
    exact = mean + slope * (x - t * mean)  # E[x1 - x0 | x_t = x]
    found = net(x, times, times, torch.zeros(len(times), dtype=torch.int64))
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)


def test_the_field_stays_finite_at_both_ends(monkeypatch) -> None:
    monkeypatch.setattr(Network, "forward", exact_noise(0.7, 1.6))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = build(DIT).double()
    ends, inner = torch.tensor([0.0, 1.0]), TIMES[[999, 0]]
    y = torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(net(x, ends, ends, y), net(x, inner, inner, y))


def test_the_tangent_is_that_of_functorch() -> None:
    torch.manual_seed(0)
    net = build(DIT).double()
    for weight in net.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    x, dx = torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    t, dt = torch.rand(2, 3, dtype=torch.float64)
    given = (x, t, t), (dx, dt, dt), torch.arange(3)
    found, expected = (value_and_tangent(net, *given, name) for name in ("fused", "functorch"))
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_an_adopted_network_is_the_published_one() -> None:
    weights = published("sit", 8)
    net, converted = import_weights(weights, DIT, PATH)
    assert converted == ["outputs of a learned variance dropped"]
    x = torch.randn(5, 4, 6, 6, generator=torch.Generator().manual_seed(3)).double()
    k, y = torch.tensor([999, 500, 250, 30, 0]), torch.arange(5)
    a, b = (torch.from_numpy(each)[k][:, None, None, None] for each in (A, B))
    theirs = {name: value.double() for name, value in weights.items()}
    z = x * (a + b)  # a = t (a + b), and a^2 + b^2 = 1
    e = forward(theirs, "sit", z, k.double(), y)[:, :4]
    velocity = net.double()(x, TIMES[k], None, y)
    t = TIMES[k][:, None, None, None]
    assert e.std() > 0.1
    torch.testing.assert_close(velocity * t, x - e, rtol=0, atol=1e-5)


def test_what_a_prediction_of_noise_cannot_have() -> None:
    for change in ({"target_time": True}, {"outputs": 2}):
        with pytest.raises(ValueError, match="predicts: noise knows one time and has one output"):
            LightningDiT(**{**TINY, **SIT, **change}, predicts="noise")


@pytest.mark.parametrize(
    ("methods", "settings", "words"),
    [
        ({"teacher-dit": {"weights": None}}, {}, ["teacher-dit.backbone", "adopted", "not be trained"]),
        ({}, {"imagenet256-sdvae": {"teacher": "teacher-dit"}}, [".backbone", "not be a teacher"]),
    ],
)
def test_such_a_network_neither_learns_nor_teaches(methods, settings, words) -> None:
    student = {"student": {"title": "S", "recipe": "imagenet256-sdvae", "loss": {"name": "scm"}}}
    overrides = {"methods": {**student, **methods}, "settings": {"recipes": settings}}
    with pytest.raises(ConfigError) as error:
        make_plan(merge(raw_config(), {"overrides": overrides}))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_its_cells_are_planned(paper_plan: Plan) -> None:
    assert paper_plan.run("teacher-dit").adopted
    cells = paper_plan.tables["teachers"].all_cells
    # LightningDiT's authors take 249 steps of the 250 times.
    assert len(cells) == 6 * 1 + 2 and {key.steps for key in cells} == {249, 250}
    assert "manifest" not in behind(paper_plan, "teachers")
