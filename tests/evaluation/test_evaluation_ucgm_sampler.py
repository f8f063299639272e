"""UCGM's sampler on a Gaussian, where the flow is known."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fewstep.config.settings import Sampler
from fewstep.evaluation.samplers import integrate, ucgm_grid

STD = torch.tensor([0.4, 1.0, 1.6]).reshape(3, 1, 1)


def q(t):
    return ((t * STD.to(t)) ** 2 + (1 - t) ** 2).sqrt()


def exact(x, t, s):
    """Average velocity of the flow from N(0, I) to N(0, STD^2)."""
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (t, s))
    return x / q(t) * (STD.double() ** 2 * (s + t) - (2 - s - t)) / (q(s) + q(t))


def make(kind="ucgm", **given):
    return Sampler(kind=kind, ucgm=given) if kind == "ucgm" else Sampler(kind=kind)


def run(sampler, x0, steps, field=exact):
    fresh = torch.Generator().manual_seed(9)
    return integrate(sampler, field, x0, steps, lambda i: torch.randn(x0.shape, generator=fresh))


def draws(n, seed=0):
    return torch.randn(n, 3, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_without_extrapolation_and_noise_it_is_euler(steps):
    torch.testing.assert_close(
        run(make(condition="velocity"), draws(32), steps),
        run(make("euler"), draws(32), steps),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_with_the_flow_map_to_the_next_time_it_jumps(steps):
    found = run(make(condition="next", schedule=[1.2, 0.8, 1.1]), draws(32), steps)
    torch.testing.assert_close(found, STD * draws(32), rtol=1e-6, atol=1e-6)


def test_fresh_noise_keeps_the_distribution_and_old_noise_does_not():
    """rho = 1 is exact for the exact map. What rho = 0 predicts as noise at t = 0 is the noise itself."""
    x0 = draws(200_000)
    for steps, gap in [(2, 0.3), (4, 0.5)]:
        x = run(make(condition="end", rho=1.0, gaps=[0.0, gap]), x0, steps)
        torch.testing.assert_close(x.std(0), STD.double(), rtol=0.01, atol=0)
    x = run(make(condition="end", gaps=[0.0, 0.5]), x0, 2)
    # x_(1/2) = (STD + 1) z / 2 where the deviation should be sqrt(STD^2 + 1) / 2
    inflated = (STD.double() + 1) ** 2 / (STD.double() ** 2 + 1)
    torch.testing.assert_close(x.var(0) / STD.double() ** 2, inflated, rtol=0.02, atol=0)
    assert inflated.max() == pytest.approx(2.0)


@pytest.mark.parametrize(("kappa", "order"), [(0.0, 1), (1 / 3, 2), (0.5, 1)])
def test_order_of_the_extrapolation(kappa, order):
    x0 = draws(8)
    errors = [
        (run(make(condition="velocity", kappa=kappa), x0, n) - STD * x0).abs().max().item()
        for n in (40, 80, 160)
    ]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.12)


def test_extrapolation_starts_in_the_third_step_and_spares_the_last():
    """Four steps with kappa = 1 / 2, written out; the last prediction of the data is the sample."""
    x, raw = draws(8), []
    for i, (now, after) in enumerate(pairwise([0.0, 0.25, 0.5, 0.75, 1.0])):
        u = exact(x, now, now)
        raw.append((x + (1 - now) * u, x - now * u))
        data, noise = raw[-1]
        if i == 2:
            data, noise = (new + (new - old) / 2 for new, old in zip(raw[2], raw[1], strict=True))
        x = after * data + (1 - after) * noise
    found = run(make(condition="velocity", kappa=0.5), draws(8), 4)
    torch.testing.assert_close(found, raw[-1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("gaps", "schedule", "steps", "times"),
    [
        ([0.001, 0.3], [1.0, 1.0, 1.0], 2, [0.001, 0.7, 1]),
        ([0.001, 0.3], [1.0, 1.0, 1.0], 1, [0.001, 1]),
        ([0.001, 0.5], [1.0, 1.0, 1.0], 4, [0.001, 0.1673, 0.3337, 0.5, 1]),
        ([0.0, 0.0], [1.0, 1.0, 1.0], 4, [0, 0.25, 0.5, 0.75, 1]),
        ([0.0, 0.0], [2.0, 3.0, 1.0], 2, [0, 1 - 0.75**3, 1]),
    ],
)
def test_the_times(gaps, schedule, steps, times):
    grid = ucgm_grid(make(condition="end", gaps=gaps, schedule=schedule).ucgm, steps)
    assert grid.tolist() == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize("condition", ["velocity", "end", "next"])
def test_what_the_network_is_asked(condition):
    asked = []

    def field(x, t, s):
        asked.append((round(t, 4), round(s, 4)))
        return exact(x, t, s)

    run(make(condition=condition), draws(4), 2, field)
    ends = {"velocity": [0, 0.5], "end": [1, 1], "next": [0.5, 1]}[condition]
    assert asked == list(zip([0, 0.5], ends, strict=True))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"kind": "ucgm"}, "needed by, kind: ucgm"),
        ({"kind": "euler", "ucgm": {"condition": "end"}}, "belongs to, and is needed by"),
        ({"kind": "ucgm", "shift": 0.3, "ucgm": {"condition": "end"}}, "shift and times are not for"),
        ({"kind": "ucgm", "ucgm": {"condition": "end", "gaps": [0.5, 0.5]}}, "gaps"),
        ({"kind": "ucgm", "ucgm": {"condition": "end", "schedule": [1.0, 0.0, 1.0]}}, "schedule"),
    ],
)
def test_what_does_not_fit_is_refused(given, reason):
    with pytest.raises(ValueError, match=reason):
        Sampler(**given)
