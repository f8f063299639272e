"""Layers of LightningDiT (Yao, Yang, Wang, 2025, arXiv 2501.01423): norms, attention, embeddings.

Attribute names are those of the published checkpoints, so that weights load without renaming.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything narrower becomes float32."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off where the device has it (the meta device has not)."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``(1 + scale) x + shift`` with (B, D) parameters on (B, N, D) tokens."""
    return x * (1 + scale[:, None]) + shift[:, None]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, computed in float32 or better."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(at_least_float32(x.dtype))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale).to(x.dtype) * self.weight


class TimeEmbedding(nn.Module):
    """Sinusoids of a time (B,), cosines first, and a two-layer network: (B, width).

    Angular frequencies are ``scale * period^(-j / half)``, j = 0 .. half - 1. With scale 1 the
    embedding turns by at most one radian over t in [0, 1], which keeps its derivative small.
    """

    def __init__(self, width: int, features: int, scale: float, period: float) -> None:
        super().__init__()
        if features % 2:
            raise ValueError(f"time_features {features} must be even: half cosines, half sines")
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.half = features // 2
        self.scale = scale
        self.period = period

    def features(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The sinusoids (B, features), computed in ``dtype``."""
        j = torch.arange(self.half, device=t.device, dtype=dtype)
        angles = t.to(dtype)[:, None] * (self.scale * self.period ** (-j / self.half))
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        weight = self.mlp[0].weight
        features: Tensor = self.features(t, at_least_float32(weight.dtype))
        return self.mlp(features.to(weight.dtype))


class LabelEmbedding(nn.Module):
    """A table (classes + 1, width); the last row is the unconditional class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of (B, C, H, W) as tokens (B, N, width), row by row."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def sincos_table(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D position code (1, rows * columns, width), tokens row by row.

    The first half of the features codes the column, the second the row; each is
    [sin, cos] of the coordinate times ``10000^(-j / quarter)``, as in DiT.
    """
    quarter = width // 4
    j = torch.arange(quarter, dtype=torch.float64)
    frequencies = 10000.0 ** (-j / quarter)
    row, column = _coordinates(rows, columns)
    halves = []
    for coordinate in (column, row):
        angles = coordinate[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    return torch.cat(halves, dim=-1)[None].to(torch.get_default_dtype())


def _coordinates(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column of each token, (rows * columns,) each."""
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)
    return row, column


class RotaryTable(nn.Module):
    """Cosines and sines (N, head_dim) of the 2-D rotary position code.

    The first half of a head's dimensions turns with the row, the second with the column. Each
    half has frequencies ``10000^(-2j / half)``, one for each pair of adjacent dimensions.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, rows: int, columns: int, head_dim: int) -> None:
        super().__init__()
        half = head_dim // 2
        j = torch.arange(half // 2, dtype=torch.float64)
        frequencies = (10000.0 ** (-2 * j / half)).repeat_interleave(2)
        row, column = _coordinates(rows, columns)
        angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1)
        self.register_buffer("freqs_cos", angles.cos().to(torch.get_default_dtype()))
        self.register_buffer("freqs_sin", angles.sin().to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """Rotate (B, heads, N, head_dim): adjacent (a, b) become (a cos - b sin, b cos + a sin)."""
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-b, a], dim=-1).flatten(-2)
        return x * self.freqs_cos + turned * self.freqs_sin


class Attention(nn.Module):
    """Self-attention of (B, N, width) tokens with rotary positions.

    The caller chooses the kernel with ``torch.nn.attention.sdpa_kernel``: forward-mode derivatives need MATH.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: RotaryTable) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Norm gains and rotary tables are float32 also where the projections are bfloat16.
        q = rope(self.q_norm(q)).to(v.dtype)
        k = rope(self.k_norm(k)).to(v.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """``w3(silu(a) * b)`` with (a, b) = w12(x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


class Block(nn.Module):
    """Transformer block whose norms and residual gates are set by the conditioning (B, width)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads, qk_norm)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, 8 * width // 3)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor, rope: RotaryTable) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        h = h + gate1[:, None] * self.attn(modulate(self.norm1(h), shift1, scale1), rope)
        return h + gate2[:, None] * self.mlp(modulate(self.norm2(h), shift2, scale2))


class FinalLayer(nn.Module):
    """Modulated norm and projection of (B, N, width) tokens to (B, N, features) patches."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(h), shift, scale))
