"""Networks on which objectives can be checked: the exact flow map of a Gaussian, and tiny trainable ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep import methods
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims
from fewstep.core.rng import Streams

ROWS = 256
STD = torch.linspace(0.3, 1.7, 6, dtype=torch.float64).reshape(3, 2, 1)
"""Standard deviation of the data, independent entries (C, H, W)."""


class ExactMap(nn.Module):
    """Average velocity of x1 ~ N(0, STD^2), plus ``perturbation`` * sin(...).

    x_t has standard deviation q(t) = sqrt(t^2 STD^2 + (1 - t)^2) and f(x, t, s) = x q(s) / q(t). The
    difference quotient is written without dividing by s - t. Times above 1 are FACM's 2 - t.
    """

    def __init__(self, perturbation: float = 0.0):
        super().__init__()
        self.perturbation = nn.Parameter(torch.tensor(perturbation, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        t, s = torch.where(t > 1, 2 - t, t), torch.where(t > 1, 2 - s, s)
        t, s = append_dims(t, x), append_dims(s, x)
        F = x / _q(t) * (STD**2 * (s + t) - (2 - s - t)) / (_q(s) + _q(t))
        return F + self.perturbation * torch.sin(3 * x + 2 * t + 5 * s)


class ExactHeads(ExactMap):
    """The same field with two outputs, velocity and flow map to the data; s is not asked for."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x, t, t, y), super().forward(x, t, torch.ones_like(t), y)


def _q(t: Tensor) -> Tensor:
    return ((t * STD) ** 2 + (1 - t) ** 2).sqrt()


class TinyFlow(nn.Module):
    """A smooth conditional network on 2 x 4 x 4 latents with 3 classes and a null label."""

    shape = (2, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv2d(2, 8, 3, padding=1)
        self.times = nn.Linear(2, 8)
        self.labels = nn.Embedding(4, 8)
        self.outward = nn.Conv2d(8, 2, 3, padding=1)

    def hidden(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        condition = self.times(torch.stack([t, s], 1)) + self.labels(y)
        return torch.nn.functional.silu(self.inward(x) + condition[:, :, None, None])

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return self.outward(self.hidden(x, t, s, y))

    def critic(self) -> nn.Module:
        return TinyCritic()


class TinyCritic(TinyFlow):
    """A number for each sample."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.outward(self.hidden(x, t, t, y)).square().flatten(1).mean(1)


class TinyHeads(TinyFlow):
    """The same with two outputs, velocity and flow map."""

    def __init__(self) -> None:
        super().__init__()
        self.outward_u = nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x, t, s, y)
        return self.outward(h), self.outward_u(h)


class TinyScalar(TinyFlow):
    """The same with an average divergence."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Linear(8 * 16, 1)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.hidden(x, t, s, y)
        return self.outward(h), self.scalar(h.flatten(1)).squeeze(1)


class TinyPyramid(TinyFlow):
    """A smooth network on the packed pyramid of 2 x 2 and 4 x 4, with a time for each scale."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Conv1d(2, 8, 3, padding=1)  # type: ignore[assignment]
        self.outward = nn.Conv1d(8, 2, 3, padding=1)  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        condition = self.times(t) + self.labels(y)
        return self.outward(torch.nn.functional.silu(self.inward(x) + condition[:, :, None]))


class TinyAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(2, 3, 2, stride=2)
        self.decode = nn.ConvTranspose2d(3, 2, 2, stride=2)

    def forward(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        return self.decode(z if noise is None else z + noise), z


class TinyClassifier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(32, 3))


class TinyClip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(nn.Flatten(), nn.Linear(32, 5))
        self.captions = nn.Embedding(3, 5)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.images(images), self.captions(y), self.scale


@pytest.fixture
def gaussian_batch() -> Batch:
    draws = torch.Generator().manual_seed(0)
    shape = (ROWS, *STD.shape)
    x1 = STD * torch.randn(shape, generator=draws, dtype=torch.float64)
    x0 = torch.randn(shape, generator=draws, dtype=torch.float64)
    return Batch(x1=x1, x0=x0, y=torch.zeros(ROWS, dtype=torch.int64))


@pytest.fixture
def exact_map() -> Callable[..., ExactMap]:
    return ExactMap


@pytest.fixture
def exact_heads() -> Callable[..., ExactHeads]:
    return ExactHeads


@pytest.fixture
def exact_context() -> Callable[..., Context]:
    """A context whose teacher is the exact velocity (or none)."""
    truth = ExactMap()

    def teacher(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            return truth(x, t, t, y)

    def make(step: int = 0, taught: bool = True, extra: nn.Module | None = None) -> Context:
        return Context(
            step=torch.tensor(step, dtype=torch.float64),
            steps=100,
            rng=Streams(0, step, ROWS, slice(None)),
            null=1,
            jvp=value_and_tangent,
            teacher=teacher if taught else None,
            extra=extra,
        )

    return make


@pytest.fixture
def taught(exact_context) -> Callable[..., Context]:
    """The same with the exact map as moving average and as frozen network."""

    def make(step: int = 0, teacher: bool = True) -> Context:
        ctx = exact_context(step, taught=teacher)
        ctx.target, ctx.teacher_net = ExactMap(), ExactMap()
        return ctx

    return make


@pytest.fixture
def tiny() -> Callable[[str], nn.Module]:
    """A tiny network of a kind, always with the same weights."""

    def make(name: str) -> nn.Module:
        params = methods.parameter_classes()[name]
        flow = TinyHeads if params.outputs == (2,) else TinyScalar if params.scalar else TinyFlow
        flow = TinyPyramid if params.pyramid else flow
        kinds = {"autoencoder": TinyAutoencoder, "classifier": TinyClassifier, "contrast": TinyClip}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return kinds.get(name, flow)()

    return make


@pytest.fixture
def tiny_batch() -> Batch:
    draws = torch.Generator().manual_seed(2)
    x1, x0 = torch.randn(2, 8, 2, 4, 4, generator=draws)
    return Batch(x1=x1, x0=x0, y=torch.arange(8) % 3)
