"""Layers of LightningDiT (arXiv 2501.01423), of DiT, SiT, TiT (2212.09748, 2401.08740, 2505.07447), and
what all networks of a flow share: times and labels summed to one conditioning vector.

Attribute names are those of the published checkpoints, so that weights load without renaming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.backbones import TimedClassNetwork
from ..core.precision import full_precision, upcast


class Norm(nn.Module):
    """Normalisation over the last axis, of three kinds.

    ``rms`` divides by the root of the mean square and has a learned gain, ``rms-plain`` has none; ``layer``
    subtracts the mean and divides by the standard deviation, without gain and offset (DiT, SiT).
    """

    def __init__(self, kind: str, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if kind == "rms" else None
        self.normalise = torch.layer_norm if kind == "layer" else torch.rms_norm
        self.eps = eps

    def forward(self, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
        """The norm of x (B, ..., D); ``(1 + scale)`` times that plus ``shift`` (B, 1, D), where given."""
        unit = self.normalise(x, x.shape[-1:], eps=self.eps)
        if shift is None or scale is None:
            return unit if self.weight is None else unit * self.weight
        # The gain meets the scale before it meets the tokens: one pass over them less.
        factor = 1 + scale if self.weight is None else (1 + scale) * self.weight
        return torch.addcmul(shift, unit, factor)


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
        dtype = self.mlp[0].weight.dtype
        return self.mlp(self.features(t, torch.promote_types(dtype, torch.float32)).to(dtype))


class LabelEmbedding(nn.Module):
    """A table (classes + 1, width); the last row is the unconditional class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class ScalarHead(nn.Sequential):
    """One number for each sample, (B,), of all its features (B, ...) together (F2D2, arXiv 2512.02636).

    Three layers, 128 and 64 wide, as released. It starts as 0.
    """

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, 128), nn.SiLU(), nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 1))
        zero(self[4])

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.flatten(1)).squeeze(1)


class Conditioned(nn.Module):
    """A network that knows a time t, and perhaps a second time s and a label y.

    The names of the embeddings are those of the published checkpoints; one that the network lacks is None.
    """

    shape: tuple[int, ...]
    """(C, H, W) of what it takes and gives."""
    t_embedder: TimeEmbedding
    r_embedder: TimeEmbedding | None
    y_embedder: LabelEmbedding | None

    def embed(self, spec: TimedClassNetwork, width: int, labels: bool) -> None:
        """Make the embeddings; that of s starts at zero, so that a student starts as its teacher."""
        self.shape = tuple(spec.shape)
        times = (width, spec.time_features, spec.time_scale, spec.time_period)
        self.t_embedder = TimeEmbedding(*times)
        self.r_embedder = TimeEmbedding(*times) if spec.embeds_target_time else None
        self.y_embedder = LabelEmbedding(spec.classes, width) if labels else None
        if self.r_embedder is not None:
            zero(self.r_embedder.mlp[2])

    def condition(self, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Sum of the embeddings of t, s (B,) and the labels y (B,): (B, width), never in half precision.

        The derivative with respect to the times passes through here, and costs little.
        """
        with full_precision(y.device.type):
            c = self.t_embedder(t)
            if self.y_embedder is not None:
                c = c + self.y_embedder(y)
            if self.r_embedder is not None:
                if s is None:
                    raise ValueError("this network has a target-time embedding: give s")
                c = c + self.r_embedder(s)
        return c


def zero(*layers: nn.Module | None) -> None:
    """Weights and offset 0, of the layers that are there."""
    for layer in layers:
        for weight in layer.parameters() if layer is not None else ():
            nn.init.zeros_(weight)


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of (B, C, H, W) as tokens (B, N, width), row by row.

    The convolution only holds the weights: as a matrix product it is faster, and leaves the tokens
    contiguous for all layers that follow.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        p = self.proj.stride[0]
        x = x.unflatten(3, (-1, p)).unflatten(2, (-1, p))
        patches = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C * patch * patch)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Patches (B, N, patch * patch * C), channels last, of a grid row by row, as (B, C, H, W)."""
    rows, columns = grid
    channels = patches.shape[-1] // patch**2  # not -1: a batch may be empty
    image = patches.unflatten(2, (patch, patch, channels)).unflatten(1, (rows, columns))
    return image.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * patch, columns * patch)


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


def rotary_angles(places: Tensor, dims: int) -> Tensor:
    """Angles (N, dims / 2) by which pairs of dimensions turn at places (N,): times 10000^(-2j / dims)."""
    j = torch.arange(dims // 2, dtype=torch.float64)
    return places[:, None] * 10000.0 ** (-2 * j / dims)


class RotaryTable(nn.Module):
    """Cosines and sines (N, head_dim) of the 2-D rotary position code.

    The first half of a head's dimensions turns with the row, the second with the column, each by
    `rotary_angles`, one for each pair of adjacent dimensions.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, rows: int, columns: int, head_dim: int) -> None:
        super().__init__()
        halves = [rotary_angles(places, head_dim // 2) for places in _coordinates(rows, columns)]
        angles = torch.cat(halves, dim=-1).repeat_interleave(2, dim=-1)
        self.register_buffer("freqs_cos", angles.cos().to(torch.get_default_dtype()))
        self.register_buffer("freqs_sin", angles.sin().to(torch.get_default_dtype()))

    def forward(self) -> Tensor:
        """Cosine and sine of each pair of dimensions, for `rotate`: (N, head_dim / 2, 2)."""
        return upcast(torch.stack([self.freqs_cos[:, ::2], self.freqs_sin[:, ::2]], dim=-1))


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn (..., N, head_dim): adjacent (a, b) become (a cos - b sin, b cos + a sin)."""
    pairs = upcast(x).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers have real numbers alone
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:  # as products of complex numbers: one kernel, the same bits
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Self-attention of (B, N, width) tokens with rotary positions where ``turns`` are given."""

    def __init__(self, width: int, heads: int, qk_norm: bool, norm: str, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.q_norm = Norm(norm, width // heads) if qk_norm else nn.Identity()
        self.k_norm = Norm(norm, width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, turns: Tensor | None, injected: Tensor | None = None) -> Tensor:
        """``injected`` (B, N or 1, 3 width) is added to queries, keys and values."""
        batch, tokens, width = x.shape
        # As rows (B N, width), which a linear layer would make of them and undo.
        qkv = self.qkv(x.flatten(0, 1))
        if injected is not None:
            qkv = qkv.view(batch, tokens, 3 * width) + injected
        # Queries and keys go through norm and rotation as one tensor (2, B, heads, N, D).
        qkv = qkv.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        pair, v = qkv.split([2, 1])
        if isinstance(self.q_norm, Norm) and isinstance(self.k_norm, Norm):
            pair = self.q_norm.normalise(pair, pair.shape[-1:], eps=self.q_norm.eps)
            if self.q_norm.weight is not None and self.k_norm.weight is not None:
                pair = pair * torch.stack([self.q_norm.weight, self.k_norm.weight]).view(2, 1, 1, 1, -1)
        if turns is not None:
            pair = rotate(pair, turns)
        q, k = pair.to(v.dtype).unbind(0)  # as autocast would cast each of the two
        mixed = F.scaled_dot_product_attention(q, k, v.squeeze(0))
        return self.proj(mixed.transpose(1, 2).reshape(-1, width)).view(x.shape)


class SwiGLU(nn.Module):
    """``w3(silu(a) * b)`` with (a, b) = w12(x)."""

    def __init__(self, width: int, hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden, bias=bias)
        self.w3 = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.w12(x.flatten(0, -2)).chunk(2, dim=-1)  # rows, as in `Attention`
        return self.w3(F.silu(a) * b).view(x.shape)


class Gelu(nn.Module):
    """``fc2(gelu(fc1(x)))``, by default with the tanh form of GELU (DiT, SiT); ``none`` is the exact one."""

    def __init__(self, width: int, hidden: int, approximate: str = "tanh") -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.fc1(x.flatten(0, -2))
        return self.fc2(F.gelu(rows, approximate=self.approximate)).view(x.shape)


class Block(nn.Module):
    """Transformer block whose norms and residual gates are set by the conditioning (B, width)."""

    def __init__(self, width: int, heads: int, qk_norm: bool, norm: str, mlp: str) -> None:
        super().__init__()
        self.norm1 = Norm(norm, width)
        self.attn = Attention(width, heads, qk_norm, norm)
        self.norm2 = Norm(norm, width)
        # Of equal size.
        self.mlp = SwiGLU(width, 8 * width // 3) if mlp == "swiglu" else Gelu(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, h: Tensor, c: Tensor, turns: Tensor | None) -> Tensor:
        # Cast at once: autocast would cast each of the six alone, in the backward too.
        modulation = self.adaLN_modulation(c).to(h.dtype)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        h = torch.addcmul(h, gate1, self.attn(self.norm1(h, shift1, scale1), turns))
        return torch.addcmul(h, gate2, self.mlp(self.norm2(h, shift2, scale2)))


class FinalLayer(nn.Module):
    """Modulated norm and projection of (B, N, width) tokens to (B, N, features) patches."""

    def __init__(self, width: int, features: int, norm: str) -> None:
        super().__init__()
        self.norm_final = Norm(norm, width)
        self.linear = nn.Linear(width, features)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(h, shift, scale))
