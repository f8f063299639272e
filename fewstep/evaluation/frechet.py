"""Fréchet distance between Gaussians, from statistics gathered in a stream, in float64.

    d^2 = |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1^(1/2) S2 S1^(1/2))^(1/2))

(Heusel et al., arXiv 1706.08500, Eq. 6). The product under the root is symmetric and positive
semi-definite, so its eigenvalues are real, and a singular covariance needs no special case.
"""

from __future__ import annotations

import torch
from torch import Tensor


class GaussianStats:
    """Mean and covariance of feature vectors that come in batches.

    Args:
        dim: length D of a feature vector.
        device: where to accumulate.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.n = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        """(D,)"""
        self.m2 = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        """Sum of outer products of the deviations from the mean, (D, D)."""

    def update(self, features: Tensor) -> None:
        """Take in features (B, D) of any floating dtype.

        Raises:
            ValueError: another dimension, or a feature that is not finite.
        """
        if features.dim() != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features of shape {tuple(features.shape)}, expected (B, {len(self.mean)})")
        features = features.detach().to(self.mean)
        if not bool(torch.isfinite(features).all()):
            raise ValueError("a feature is NaN or infinite")
        if len(features) == 0:
            return
        # Chan, Golub & LeVeque (1983): no cancellation, whatever the size of the mean.
        n, mean = len(features), features.mean(0)
        centred = features - mean
        total, shift = self.n + n, mean - self.mean
        self.m2 += centred.T @ centred + torch.outer(shift, shift) * (self.n * n / total)
        self.mean += shift * (n / total)
        self.n = total

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (D, D).

        Raises:
            ValueError: fewer than two samples.
        """
        if self.n < 2:
            raise ValueError(f"a covariance needs two samples or more, not {self.n}")
        return self.m2 / (self.n - 1)


def frechet_distance(mu1: Tensor, cov1: Tensor, mu2: Tensor, cov2: Tensor) -> float:
    """Squared Fréchet distance of N(mu1, cov1) and N(mu2, cov2); means (D,), covariances (D, D).

    Raises:
        ValueError: the dimensions disagree, or an entry is not finite.
    """
    dim = len(mu1)
    shapes = [tuple(x.shape) for x in (mu1, mu2, cov1, cov2)]
    if shapes != [(dim,), (dim,), (dim, dim), (dim, dim)]:
        raise ValueError(
            f"shapes disagree: means {shapes[0]}, {shapes[1]}; covariances {shapes[2]}, {shapes[3]}"
        )
    mu1, cov1, mu2, cov2 = (x.double() for x in (mu1, cov1, mu2, cov2))
    if not all(bool(torch.isfinite(x).all()) for x in (mu1, cov1, mu2, cov2)):
        raise ValueError("a mean or covariance holds NaN or infinity")
    values, vectors = torch.linalg.eigh((cov1 + cov1.T) / 2)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = root @ cov2 @ root
    cross = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    return float((mu1 - mu2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross)
