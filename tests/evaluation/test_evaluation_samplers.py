from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fewstep.config.settings import Sampler
from fewstep.core.path import flow_map, interpolate
from fewstep.evaluation.samplers import evaluations_per_image, integrate, time_grid

STD = torch.tensor([0.4, 1.0, 1.6]).reshape(3, 1, 1)


def q(t):
    return ((t * STD) ** 2 + (1 - t) ** 2).sqrt()


def exact(x, t, s):
    """Average velocity of the flow from N(0, I) to N(0, STD^2)."""
    t, s = torch.tensor(t), torch.tensor(s)
    return x / q(t) * (STD**2 * (s + t) - (2 - s - t)) / (q(s) + q(t))


@pytest.fixture
def x0():
    return torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))


class Recorder:
    """Counts field calls and noise requests."""

    def __init__(self, field=exact):
        self.field, self.calls, self.asked = field, [], []

    def __call__(self, x, t, s):
        assert x.dtype == torch.float32 and isinstance(t, float) and isinstance(s, float)
        self.calls.append((round(t, 4), round(s, 4)))
        return self.field(x, t, s)

    def noise(self, k):
        self.asked.append(k)
        return torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(100 + k))

    def run(self, kind, x0, steps, **given):
        return integrate(Sampler(kind=kind, **given), self, x0, steps, self.noise)


def test_path_and_flow_map_meet_their_ends(x0):
    x1, t = STD * x0, torch.linspace(0, 1, 64)
    x = interpolate(x0, x1, t)
    assert torch.equal(x[0], x0[0]) and torch.equal(x[-1], x1[-1])
    torch.testing.assert_close(flow_map(x, t, torch.ones(64), x1 - x0), x1)
    torch.testing.assert_close(flow_map(x, t, t, x1), x)


def test_time_grid():
    assert time_grid(4).tolist() == [0, 0.25, 0.5, 0.75, 1]
    shifted = time_grid(10, 0.3)
    assert shifted[0] == 0 and shifted[-1] == 1 and (shifted.diff() > 0).all()
    assert float(time_grid(2, 0.3)[1]) == pytest.approx(0.15 / 0.65)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("shift", [1.0, 0.3])
def test_jumps_of_the_exact_map_are_exact_in_any_number_of_steps(steps, shift, x0):
    field = Recorder()
    torch.testing.assert_close(field.run("jump", x0, steps, shift=shift), STD * x0, rtol=1e-5, atol=1e-5)
    assert len(field.calls) == steps and field.asked == []


def test_one_consistency_step_is_the_flow_map(x0):
    field = Recorder()
    torch.testing.assert_close(field.run("cm", x0, 1), STD * x0, rtol=1e-5, atol=1e-5)
    assert field.calls == [(0, 1)] and field.asked == []


def test_consistency_steps_renoise(x0):
    field = Recorder()
    x = field.run("cm", x0, 3)
    assert field.calls == [(0, 1), (0.3333, 1), (0.6667, 1)] and field.asked == [0, 1]
    # By hand: the last state is 2/3 of the second prediction and 1/3 of the second noise.
    one = 1 / 3 * STD * x0 + 2 / 3 * field.noise(0)
    two = 2 / 3 * (one * q(torch.tensor(1.0)) / q(torch.tensor(1 / 3))) + 1 / 3 * field.noise(1)
    torch.testing.assert_close(x, two * STD / q(torch.tensor(2 / 3)), rtol=1e-5, atol=1e-5)


def test_consistency_steps_of_the_exact_map_keep_the_distribution():
    big = torch.randn(40_000, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    fresh = torch.Generator().manual_seed(4)
    x = integrate(Sampler(kind="cm"), exact, big, 4, lambda k: torch.randn(big.shape, generator=fresh))
    torch.testing.assert_close(x.std(0), STD, rtol=0.02, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gamma_runs_from_jumps_to_consistency_steps(steps, x0):
    """gamma = 1 are consistency steps, and gamma near 0 nears plain jumps."""
    assert torch.equal(Recorder().run("jump", x0, steps, gamma=1.0), Recorder().run("cm", x0, steps))
    plain = Recorder().run("jump", x0, steps)
    near = [Recorder().run("jump", x0, steps, gamma=gamma) - plain for gamma in (1e-2, 1e-3)]
    if steps == 1:
        assert all(torch.equal(gap, torch.zeros_like(gap)) for gap in near)
    else:
        assert float(near[0].norm() / near[1].norm()) == pytest.approx(10, rel=0.05)


def test_a_gamma_step_by_hand(x0):
    """To t' = 1/2 with gamma = 0.6: the jump ends where (1 - u) / u = 0.8, and 0.6 of the noise is fresh."""
    field = Recorder()
    x = field.run("jump", x0, 2, gamma=0.6)
    u = torch.tensor(1 / 1.8)
    assert field.calls == [(0, round(1 / 1.8, 4)), (0.5, 1)] and field.asked == [0]
    middle = 0.5 / u * (x0 * q(u)) + 0.3 * field.noise(0)
    torch.testing.assert_close(x, middle * STD / q(torch.tensor(0.5)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 0.8])
def test_gamma_steps_of_the_exact_map_keep_the_distribution(gamma):
    big = torch.randn(40_000, 3, 1, 1, generator=torch.Generator().manual_seed(3))
    fresh = torch.Generator().manual_seed(4)
    sampler = Sampler(kind="jump", gamma=gamma)
    x = integrate(sampler, exact, big, 4, lambda k: torch.randn(big.shape, generator=fresh))
    torch.testing.assert_close(x.std(0), STD, rtol=0.02, atol=0)
    # Still a function of the noise at the start, the more so the less of it is replaced.
    assert (x * big).mean() > {0.3: 0.8, 0.8: 0.1}[gamma] * STD.mean()


def test_gamma_is_for_jumps():
    with pytest.raises(ValueError, match="gamma belongs to kind: jump, not to cm"):
        Sampler(kind="cm", gamma=0.5)


def test_euler_converges_at_first_order(x0):
    field = Recorder()
    errors = [(field.run("euler", x0, n) - STD * x0).abs().max().item() for n in (20, 40, 80)]
    assert field.calls[1] == (0.05, 0.05) and field.asked == []
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("steps", "switch", "calls", "asked"),
    [
        (2, 0.5, [(0, 0.5), (0.5, 1)], []),
        (4, 0.5, [(0, 0.25), (0.25, 0.25), (0.5, 1), (0.75, 1)], [2]),
        (4, 0.0, [(0, 0.25), (0.25, 1), (0.5, 1), (0.75, 1)], [1, 2]),
        (4, 0.9, [(0, 0.25), (0.25, 0.25), (0.5, 0.5), (0.75, 1)], []),
    ],
)
def test_mix_jumps_then_euler_then_renoises(steps, switch, calls, asked, x0):
    field = Recorder()
    field.run("mix", x0, steps, switch=switch)
    assert field.calls == calls and field.asked == asked


def test_mix_of_two_steps_is_exact_for_the_exact_map(x0):
    torch.testing.assert_close(Recorder().run("mix", x0, 2), STD * x0, rtol=1e-5, atol=1e-5)


def test_impossible_step_counts_are_refused(x0):
    with pytest.raises(ValueError, match="mix sampler spends its first step"):
        Recorder().run("mix", x0, 1)
    with pytest.raises(ValueError, match="at least one step"):
        evaluations_per_image(Sampler(kind="cm"), 0, guided=False)


def test_evaluations():
    assert evaluations_per_image(Sampler(kind="euler"), 50, guided=False) == 50
    assert evaluations_per_image(Sampler(kind="euler"), 50, guided=True) == 100


def test_sampling_keeps_dtype_and_records_no_graph(x0):
    weight = torch.ones((), requires_grad=True)
    x = integrate(Sampler(kind="euler"), lambda x, t, s: weight * x, x0, 3, lambda k: x0)
    assert x.dtype == x0.dtype and not x.requires_grad


def test_named_times_take_the_place_of_the_grid(x0):
    field = Recorder()
    x = field.run("cm", x0, 2, times=[0.0, 0.7])
    assert [call[0] for call in field.calls] == [0, 0.7] and field.asked == [0]
    middle = 0.7 * STD * x0 + 0.3 * field.noise(0)
    torch.testing.assert_close(x, middle * STD / q(torch.tensor(0.7)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="names the times of 2 steps"):
        field.run("cm", x0, 3, times=[0.0, 0.7])


@pytest.mark.parametrize("times", [[0.1, 0.5], [0.0, 0.5, 0.5], [0.0, 1.0]])
def test_times_that_do_not_rise_from_noise_to_data_are_refused(times):
    with pytest.raises(ValidationError, match="must start at 0 and rise"):
        Sampler(kind="cm", times=times)
    with pytest.raises(ValidationError, match="exclude each other"):
        Sampler(kind="cm", times=[0.0, 0.5], shift=0.3)
