"""Maximum mean discrepancy: a closed form, and no bias."""

from __future__ import annotations

import pytest
import torch

from fewstep.evaluation.mmd import mmd_squared


def gaussians(count: int, shift: float, seed: int) -> torch.Tensor:
    return shift + torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def expected(shift: float, gamma: float) -> float:
    """Of N(0, I) and N(shift, I) in the plane: differences of two draws are N(., 2 I)."""
    spread = 1 + 4 * gamma
    return 2 / spread * (1 - float(torch.exp(torch.tensor(-gamma * 2 * shift**2 / spread))))


@pytest.mark.parametrize(("shift", "gamma"), [(1.0, 1.0), (0.5, 0.3)])
def test_it_is_that_of_two_gaussians(shift, gamma):
    found = mmd_squared(gaussians(3000, 0.0, 1), gaussians(2500, shift, 2), gamma)
    assert found == pytest.approx(expected(shift, gamma), rel=0.05)


def test_equal_laws_give_numbers_around_zero():
    """A biased estimate would be 1 / 200 (1 - 1 / 5) of each side, hence 0.008, on every draw."""
    found = [mmd_squared(gaussians(200, 0.0, 2 * k), gaussians(200, 0.0, 2 * k + 1), 1.0) for k in range(20)]
    assert min(found) < 0 < max(found)
    assert abs(sum(found) / len(found)) < 1e-3


def test_it_does_not_depend_on_the_slices(monkeypatch):
    x, y = gaussians(50, 0.0, 1), gaussians(40, 1.0, 2)
    whole = mmd_squared(x, y, 1.0)
    monkeypatch.setattr("fewstep.evaluation.mmd.ROWS", 7)
    assert mmd_squared(x, y, 1.0) == pytest.approx(whole, rel=1e-12)


def test_single_points_are_refused():
    with pytest.raises(ValueError, match="two points"):
        mmd_squared(torch.zeros(1, 2), torch.zeros(5, 2), 1.0)
