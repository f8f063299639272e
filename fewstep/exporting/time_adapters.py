"""Adapters that make SD3's own time embedding follow that of a student.

A student may embed time by slower sinusoids (backbones/reembedding.py) and embeds a target time too; a plain
SD3 does neither. For one target time the student's embedding is a curve over t, and adapters with bias of
both layers of SD3's own embedder follow it. Each layer is a weighted regression of limited rank, whose
optimum is known in closed form: the first layer follows the student's first layer, and the second one, given
what the first one makes, the whole curve. The times that few-step samplers visit weigh so much that the curve
is met there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor

from ..backbones.reembedding import POINTS, embedded_times, even_times, relative, sinusoids

STEPS = (1, 2, 4, 8)
"""Numbers of steps n of a sampler whose times are i / n."""
WEIGHT = 100
"""Of all visited times together, over that of all others."""
RIDGE = 1e-8
"""Of a regression, over the features' mean square."""


@dataclass(frozen=True)
class TimeAdapters:
    """Adapters of an embedder's two layers, and how far they are off."""

    tensors: dict[str, Tensor]
    """linear_1.lora_A.weight (rank, sinusoids), linear_1.lora_B.weight and .bias, and those of linear_2."""
    residual: float
    """Root mean square of the error over [0, 1], relative to the curve's."""
    at_steps: dict[int, float]
    """Number of steps -> the largest error at a time of that sampler, relative to the curve's."""

    @property
    def worst(self) -> float:
        """The largest error at the times of a few-step sampler."""
        return max(self.at_steps.values())


def fit_time_adapters(
    own: TimestepEmbedding,
    own_scale: float,
    student: TimestepEmbedding,
    student_scale: float,
    shift: Tensor,
    rank: int,
    scaling: float,
) -> TimeAdapters:
    """Adapters by which ``own``, on its sinusoids, follows ``student`` on the student's, plus ``shift``.

    Args:
        own_scale: time_scale of the sinusoids, rad per unit of t; likewise ``student_scale``.
        shift: embedding (width,) of the target time.
        rank: of the adapters.
        scaling: factor by which peft multiplies what an adapter gives, its bias included.
    """
    t = even_times()
    curve = embedded_times(student, student_scale, t) + shift
    waves = sinusoids(own.linear_1.in_features, own_scale, t)
    even = torch.ones(POINTS, dtype=torch.float64)
    visited = torch.cat([_visited(steps) for steps in STEPS]).unique()
    weights = even.clone()
    weights[visited] += WEIGHT * POINTS / len(visited)

    wanted = student.linear_1(sinusoids(student.linear_1.in_features, student_scale, t))
    tensors: dict[str, Tensor] = {}
    hidden = waves
    goals = (("linear_1", own.linear_1, wanted, even), ("linear_2", own.linear_2, curve, weights))
    for name, layer, goal, weight in goals:
        plain = layer(hidden)
        down, up, bias = low_rank(hidden, goal - plain, rank, weight)
        up, bias = up / scaling, bias / scaling
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.lora_B.bias": bias}
        made = plain + scaling * F.linear(F.linear(hidden, down), up, bias)
        hidden = F.silu(made)

    errors = (made - curve).square().mean(1).sqrt() / curve.square().mean().sqrt()
    at_steps = {steps: float(f"{errors[_visited(steps)].max():.3g}") for steps in STEPS}
    return TimeAdapters(tensors, float(f"{relative(made - curve, curve):.3g}"), at_steps)


def _visited(steps: int) -> Tensor:
    """Indices of the times i / steps, i = 0 .. steps - 1, among `even_times`."""
    return torch.arange(steps) * (POINTS - 1) // steps


def low_rank(features: Tensor, wanted: Tensor, rank: int, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A (rank, D), B (K, rank) and b (K,) for which B A features + b is nearest to ``wanted``, float32.

    Reduced-rank regression: the full regression, projected on the directions in which its values vary most.

    Args:
        features: (N, D).
        wanted: (N, K).
        weights: (N,), of the squared errors.
    """
    share = (weights / weights.sum())[:, None]
    x, y = features.double(), wanted.double()
    mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
    x, y = share.sqrt() * (x - mean_x), share.sqrt() * (y - mean_y)
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    full = torch.linalg.solve(gram, x.T @ y)
    values = x @ full
    directions = torch.linalg.eigh(values.T @ values).eigenvectors.flip(1)[:, :rank]
    down = (full @ directions).T
    bias = mean_y - directions @ (down @ mean_x)
    missing = rank - directions.shape[1]  # a rank above the width
    down, up = F.pad(down, (0, 0, 0, missing)), F.pad(directions, (0, missing))
    return down.float(), up.float().contiguous(), bias.float()
