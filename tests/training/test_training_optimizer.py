"""RAdam: torch's own arithmetic, and updates that are skipped without waiting for the device."""

from __future__ import annotations

import pytest
import torch
from child_processes import in_two_processes
from recorded_operations import Recorder
from torch import Tensor, nn

from fewstep.config.settings import Optimizer
from fewstep.training.optimizer import learning_rate, make_optimizer, set_learning_rate, step_if
from fewstep.training.parallel import full_tensor, shard

UPDATES = 12
"""With betas of 0.9 and 0.999 the first five are not rectified."""


def options(**given: object) -> Optimizer:
    return Optimizer(name="radam", lr=1e-2, warmup=3, **given)


def weights() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in ((3, 5), (4,), ())]


def updated(optimizer: torch.optim.Optimizer, own: list[Tensor], number: int, finite: bool = True) -> None:
    draws = torch.Generator().manual_seed(number)
    for weight in own:
        weight.grad = torch.randn(weight.shape, generator=draws)
    if not finite:
        own[0].grad[0, 0], own[1].grad[0] = float("nan"), float("inf")
    step_if(optimizer, torch.tensor(finite))


def same_state(
    one: torch.optim.Optimizer, mine: Tensor, other: torch.optim.Optimizer, weight: Tensor
) -> None:
    assert one.state[mine].keys() == other.state[weight].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(one.state[mine][kind], value) for kind, value in other.state[weight].items())


@pytest.mark.parametrize("given", [{}, {"betas": [0.8, 0.95], "weight_decay": 0.1, "eps": 1e-4}])
def test_every_bit_is_that_of_torch(given):
    settings = options(**given)
    own, other = weights(), weights()
    ours = make_optimizer(settings, own)
    theirs = torch.optim.RAdam(
        other,
        betas=tuple(settings.betas),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        decoupled_weight_decay=True,
        foreach=True,
    )
    for number in range(UPDATES):
        rate = learning_rate(settings, number, UPDATES)
        set_learning_rate(ours, rate)
        theirs.param_groups[0]["lr"] = rate
        updated(ours, own, number)
        for mine, weight in zip(own, other, strict=True):
            weight.grad = mine.grad.clone()
        theirs.step()
        assert all(map(torch.equal, own, other)), number
    for mine, weight in zip(own, other, strict=True):
        same_state(ours, mine, theirs, weight)


def test_updates_that_are_not_finite_change_nothing():
    """Neither the first one, nor one after others."""
    own, other = weights(), weights()
    skipping, plain = (make_optimizer(options(weight_decay=0.1), each) for each in (own, other))
    for number in range(UPDATES):
        if number in (0, 3, 7):
            updated(skipping, own, 100, finite=False)
            assert all(map(torch.equal, own, other)), number
        updated(skipping, own, number)
        updated(plain, other, number)
    for mine, weight in zip(own, other, strict=True):
        assert torch.equal(mine, weight)
        same_state(skipping, mine, plain, weight)


def test_updates_differ_in_numbers_only():
    """None waits for the device, whether it is rectified, or skipped."""
    own = weights()
    optimizer = make_optimizer(options(weight_decay=0.1), own)
    seen = []
    for number in range(UPDATES):
        updated(optimizer, own, number)
        finite = torch.tensor(number != 8)
        with Recorder() as recorder:
            step_if(optimizer, finite)
        seen.append(recorder.seen)
    assert len(seen[0]) > 20 and all(other == seen[0] for other in seen)


def trained(net: nn.Module) -> list[Tensor]:
    """Weights after updates on random numbers, one of which is skipped."""
    optimizer = make_optimizer(options(weight_decay=0.1), net.parameters())
    draws = torch.Generator().manual_seed(1)
    for number in range(UPDATES):
        net(torch.randn(4, 6, generator=draws)).square().mean().backward()
        step_if(optimizer, torch.tensor(number != 3))
        optimizer.zero_grad()
    return [full_tensor(weight) for weight in net.parameters()]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3))


def _share(rank, folder):
    torch.save(trained(shard(network(), torch.device("cpu"), 2)), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_that_share_the_weights(tmp_path):
    in_two_processes(_share, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for weight, expected in zip(found, trained(network()), strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)
