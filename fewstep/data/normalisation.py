"""The normalisation of latents, and the way back."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..config import Strict


class Normalisation(Strict):
    """Per channel: z = (x - mean) / std * multiplier.

    Both directions work in place on a copy of their own: temporaries cost a training's loader more
    time than the arithmetic.
    """

    mean: list[float]
    std: list[float]
    multiplier: float

    def _per_channel(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _channels(tuple(self.mean), device), _channels(tuple(self.std), device)

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw latents (..., C, H, W) of any float type to normalised float32."""
        result = latents.to(torch.float32, copy=True)
        mean, std = self._per_channel(result.device)
        return result.sub_(mean).div_(std).mul_(self.multiplier)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of `normalise`: what a tokenizer decodes, float32."""
        result = latents.to(torch.float32, copy=True)
        mean, std = self._per_channel(result.device)
        return result.div_(self.multiplier).mul_(std).add_(mean)


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Float32 (C, 1, 1), copied to a device once, as a copy waits for it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
