"""A nonlinear network for the core's tests."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class Attentive(nn.Module):
    """Attention and nonlinearities in x, t, s and y, on (B, 4, H, W), float64; labels 0 to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(4, 4)
        self.times = nn.Linear(2, 4)
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        condition = silu(self.times(torch.stack([t, s], 1))) + self.labels(y)
        tokens = x.flatten(2).transpose(1, 2) + condition[:, None]
        query, key, value = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        tokens = tokens + torch.sin(self.out(scaled_dot_product_attention(query, key, value)[:, 0]))
        return tokens.transpose(1, 2).reshape(x.shape)


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attentive().double()
