from __future__ import annotations

import pytest
import torch

from fewstep.config.losses import TimeDistribution
from fewstep.core.beta import beta_cdf, beta_quantile
from fewstep.core.rng import Streams
from fewstep.core.times import sample_times

U = torch.linspace(0, 1, 1001, dtype=torch.float64)


@pytest.mark.parametrize(
    ("a", "b", "cdf"),
    [
        (2.0, 2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, 2.0, lambda x: 4 * x**3 - 3 * x**4),
        (0.5, 0.5, lambda x: 2 / torch.pi * torch.asin(x.sqrt())),
        (1.0, 0.8, lambda x: 1 - (1 - x) ** 0.8),
        (0.8, 1.0, lambda x: x**0.8),
    ],
)
def test_closed_forms(a, b, cdf):
    x = torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(beta_cdf(x, a, b), cdf(x), rtol=0, atol=1e-14)
    torch.testing.assert_close(cdf(beta_quantile(U, a, b)), U, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("a", "b"), [(2.4, 2.4), (3.5, 3.5), (0.8, 1.3), (5.0, 2.0)])
def test_quantiles_undo_the_distribution_and_rise(a, b):
    x = beta_quantile(U, a, b)
    torch.testing.assert_close(beta_cdf(x, a, b), U, rtol=0, atol=1e-14)
    assert x[0] == 0 and x[-1] == 1 and (x.diff() > 0).all()
    torch.testing.assert_close(beta_quantile(1 - U, b, a), 1 - x, rtol=0, atol=1e-14)


def test_the_law_of_training_times():
    """Mean a / (a + b), variance a b / ((a + b)^2 (a + b + 1)); rows do not depend on how they are cut."""
    law = TimeDistribution(law="beta", alpha=2.4, beta=0.8)
    t = sample_times(law, Streams(0, 0, 20_000, slice(None)), "t")
    assert t.dtype == torch.float32 and float(t.min()) >= 0 and float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.75, abs=0.006)
    assert float(t.var()) == pytest.approx(2.4 * 0.8 / (3.2**2 * 4.2), rel=0.03)
    part = sample_times(law, Streams(0, 0, 20_000, slice(70, 90)), "t")
    assert torch.equal(part, t[70:90])


@pytest.mark.parametrize("given", [{"law": "beta"}, {"law": "beta", "alpha": 1.0}, {"alpha": 1.0}])
def test_its_parameters_belong_to_it(given):
    with pytest.raises(ValueError, match="alpha and beta belong to"):
        TimeDistribution(**given)
