from __future__ import annotations

import pytest
import torch

from fewstep.evaluation.frechet import GaussianStats, frechet_distance


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_diagonal_closed_form():
    mu1, mu2, s1, s2 = random(4, 5)
    expected = (mu1 - mu2).square().sum() + (s1.abs() - s2.abs()).square().sum()
    distance = frechet_distance(mu1, torch.diag(s1**2), mu2, torch.diag(s2**2))
    assert distance == pytest.approx(float(expected), rel=1e-12)


def test_commuting_closed_form():
    """cov2 = A cov1 A with A a polynomial in cov1: tr (cov1 + cov2 - 2 cov1 A)."""
    root = random(6, 6)
    cov = root @ root.T
    a = cov @ cov + torch.eye(6, dtype=torch.float64)
    mu = torch.zeros(6, dtype=torch.float64)
    expected = (cov + a @ cov @ a - 2 * cov @ a).trace()
    assert frechet_distance(mu, cov, mu, a @ cov @ a) == pytest.approx(float(expected), rel=1e-9)


def test_optimal_map_closed_form_without_commuting():
    """x -> A x with A symmetric positive definite is optimal: distance tr((I - A)^2 cov)."""
    one, two = random(2, 6, 6)
    cov, a = one @ one.T, two @ two.T
    mu, rest = torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64) - a
    expected = (rest @ cov @ rest).trace()
    assert frechet_distance(mu, cov, mu, a @ cov @ a) == pytest.approx(float(expected), rel=1e-9)


def test_identical_and_symmetric():
    root, other = random(2, 8, 8)
    mu = random(8)
    cov1, cov2 = root @ root.T, other @ other.T
    assert abs(frechet_distance(mu, cov1, mu, cov1)) < 1e-10
    forward, backward = frechet_distance(mu, cov1, -mu, cov2), frechet_distance(-mu, cov2, mu, cov1)
    assert forward == pytest.approx(backward, rel=1e-10)


def test_rank_deficient():
    """Rank 3 in 50 dimensions, and both supports rotated alike."""
    basis, _ = torch.linalg.qr(random(50, 50))
    s1, s2 = torch.zeros(2, 50, dtype=torch.float64)
    s1[:3], s2[1:4] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 1.0, 2.0])
    cov1, cov2 = ((basis * s**2) @ basis.T for s in (s1, s2))
    mu = torch.zeros(50, dtype=torch.float64)
    assert frechet_distance(mu, cov1, mu, cov2) == pytest.approx(float((s1 - s2).square().sum()), abs=1e-5)
    assert abs(frechet_distance(mu, cov1, mu, cov1)) < 1e-5
    assert frechet_distance(mu, 0 * cov1, mu, cov2) == pytest.approx(float((s2**2).sum()))


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "apart"), [(2048, 0.01), (500, 0.0)])
def test_the_size_of_inception_features(rank, apart):
    """Spectra as uneven as those of features, a common basis, and zeros beyond the rank."""
    basis, _ = torch.linalg.qr(random(2048, 2048))
    s1, s2 = random(2, 2048, seed=1).abs() * torch.logspace(0, -3, 2048, dtype=torch.float64)
    s1[rank:], s2[rank:] = 0, 0
    mu1, mu2 = apart * random(2, 2048, seed=2)
    cov1, cov2 = ((basis * s**2) @ basis.T for s in (s1, s2))
    expected = float((mu1 - mu2).square().sum() + (s1 - s2).square().sum())
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected, rel=1e-6)


def test_stream_equals_a_single_pass():
    """Batches against torch.cov, with a mean that would cancel in a sum of squares."""
    x = random(503, 7) + 1e6
    whole = GaussianStats(7)
    for batch in x.split([1, 200, 2, 300]):
        whole.update(batch)
    assert whole.n == 503
    torch.testing.assert_close(whole.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.cov, torch.cov(x.T), rtol=1e-8, atol=1e-9)


def test_float32_features_are_summed_in_float64():
    x = random(100, 4).float()
    stats = GaussianStats(4)
    stats.update(x)
    torch.testing.assert_close(stats.cov, torch.cov(x.double().T))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3, 5), "expected"),
        (torch.full((3, 4), float("nan")), "NaN"),
        (torch.zeros(4), "expected"),
    ],
)
def test_bad_features_are_refused(features, message):
    stats = GaussianStats(4)
    with pytest.raises(ValueError, match=message):
        stats.update(features)
    assert stats.n == 0


def test_bad_statistics_are_refused():
    mu, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match="shapes disagree"):
        frechet_distance(mu, cov, torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(mu, cov, mu * float("nan"), cov)
    with pytest.raises(ValueError, match="two samples"):
        _ = GaussianStats(3).cov
