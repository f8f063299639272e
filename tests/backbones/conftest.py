from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fewstep.backbones import build
from fewstep.config.backbones import LightningDiT


@pytest.fixture
def spec() -> Callable[..., LightningDiT]:
    """Configuration of a tiny network; keywords change it."""

    def make(**changes) -> LightningDiT:
        values = {"shape": [4, 6, 4], "classes": 5, "depth": 2, "width": 24, "heads": 2, "target_time": False}
        return LightningDiT(**values | changes)

    return make


@pytest.fixture
def active() -> Callable[..., nn.Module]:
    """Build a network without the zero layers that make a fresh one output nothing.

    The target-time embedding keeps its zero layer unless ``target`` is true.
    """

    def make(spec: LightningDiT, dtype: torch.dtype = torch.float32, target: bool = False) -> nn.Module:
        torch.manual_seed(3)
        net = build(spec)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                zero = "adaLN" in name or name.endswith("bias") or ".linear." in name
                if (zero and "r_embedder" not in name) or (target and "r_embedder" in name):
                    parameter.normal_(std=0.3)
        return net.to(dtype)

    return make


@pytest.fixture
def inputs() -> Callable[..., tuple[torch.Tensor, ...]]:
    """Random (x, t, s, y) for a network of ``spec``."""

    def make(spec: LightningDiT, batch: int = 3, dtype: torch.dtype = torch.float32):
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(batch, *spec.shape, generator=generator, dtype=dtype)
        t, s = torch.rand(2, batch, generator=generator, dtype=dtype)
        y = torch.randint(spec.classes + 1, (batch,), generator=generator)
        return x, t, s, y

    return make
