from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewstep.config.settings import ConstantEma, PowerEma
from fewstep.training.ema import Approach, Ema, power_gamma


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("scratch", torch.tensor(0.0), persistent=False)

    def step(self, k):
        with torch.no_grad():
            self.weight.copy_(torch.tensor([1.0, k, math.sin(k)]))
        self.count += 1


@pytest.mark.parametrize(("sigma", "gamma"), [(0.20, 1.8262), (0.05, 16.972), (0.10, 6.9378)])
def test_gamma_of_sigma_rel(sigma, gamma):
    assert power_gamma(sigma) == pytest.approx(gamma, rel=1e-4)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 0.2, 0.288])
def test_gamma_solves_its_equation(sigma):
    g = power_gamma(sigma)
    assert math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3)) == pytest.approx(sigma, rel=1e-9)


def test_power_average_is_the_direct_sum():
    """Unrolled, update j of n weighs (1 - beta_j) prod_(k > j) beta_k."""
    net = Toy()
    ema = Ema(net, PowerEma(kind="power", sigma_rel=0.2))
    expected = torch.zeros(3, dtype=torch.float64)
    for k in range(200):
        net.step(k)
        ema.update(net)
        beta = (1 - 1 / (k + 1)) ** (1 + power_gamma(0.2))
        expected = beta * expected + (1 - beta) * net.weight.detach().double()
    torch.testing.assert_close(ema.tensors()["weight"].double(), expected, rtol=1e-5, atol=1e-5)
    # The profile's own mean, in the continuous limit: (gamma + 1) / (gamma + 2) of the run.
    assert float(ema.tensors()["weight"][1]) / 200 == pytest.approx(2.8262 / 3.8262, abs=0.01)


def test_first_power_update_copies():
    net = Toy()
    ema = Ema(net, PowerEma(kind="power", sigma_rel=0.05))
    net.step(7)
    ema.update(net)
    assert torch.equal(ema.tensors()["weight"], net.weight)


def test_constant_average_and_its_ramp():
    net = Toy()
    plain = Ema(net, ConstantEma(kind="constant", decay=0.9))
    ramped = Ema(net, ConstantEma(kind="constant", decay=0.9, ramp=True))
    net.step(5)
    plain.update(net)
    ramped.update(net)
    assert float(plain.tensors()["weight"][0]) == pytest.approx(0.1)
    assert float(ramped.tensors()["weight"][0]) == pytest.approx(0.9)
    assert [float(ramped.beta(torch.tensor(k))) for k in (0, 8, 1000)] == [0.1, 0.5, 0.9]


def test_buffers_are_copied_and_keys_are_those_of_the_state_dict():
    net = Toy()
    ema = Ema(net, ConstantEma(kind="constant", decay=0.5))
    net.step(1)
    ema.update(net)
    assert ema.tensors().keys() == net.state_dict().keys()
    assert ema.tensors()["count"] == 1 and ema.tensors()["count"].dtype == torch.int64


def test_half_precision_weights_are_averaged_in_float32():
    net = Toy().bfloat16()
    ema = Ema(net, ConstantEma(kind="constant", decay=0.999))
    for k in range(50):
        net.step(k)
        ema.update(net)
    assert ema.tensors()["weight"].dtype == torch.float32
    assert float(ema.tensors()["weight"][0]) == pytest.approx(1 - 0.999**50, rel=1e-4)


def test_the_average_does_not_alias_the_network():
    net = Toy()
    ema = Ema(net, ConstantEma(kind="constant", decay=0.5))
    net.step(3)
    assert float(ema.tensors()["weight"].abs().sum()) == 0 and ema.tensors()["count"] == 0


def test_an_average_may_live_in_a_network_of_its_own():
    """The same numbers as beside the network; the copy is called."""
    law = Approach(0.9)
    net, home = Toy(), Toy()
    plain, lived = Ema(net, law), Ema(net, law, into=home)
    for k in range(12):
        net.step(k)
        plain.update(net)
        lived.update(net)
    assert torch.equal(home.weight, plain.tensors()["weight"]) and home.count == net.count
    assert lived.tensors().keys() == plain.tensors().keys()


def test_a_decay_that_is_approached_from_zero():
    ema = Ema(Toy(), Approach(0.999))
    decays = [float(ema.beta(torch.tensor(k))) for k in range(300)]
    assert decays[0] == 0 and decays == sorted(decays) and decays[-1] < 0.999
    reached = [next(k for k, d in enumerate(decays) if d >= value) for value in (0.9, 0.95, 0.99)]
    assert reached == pytest.approx([16, 35, 204], abs=1)
    assert float(ema.beta(torch.tensor(10**6))) == pytest.approx(0.999, abs=1e-9)


def test_an_update_that_was_not_taken_changes_nothing():
    net = Toy()
    ema = Ema(net, PowerEma(kind="power", sigma_rel=0.05))
    net.step(1)
    ema.update(net, torch.tensor(True))
    net.step(2)
    ema.update(net, torch.tensor(False))
    assert ema.tensors()["weight"].tolist() == pytest.approx([1.0, 1.0, math.sin(1)])
    assert int(ema.updates) == 1
