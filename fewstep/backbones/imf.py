"""The transformer of improved MeanFlow (arXiv 2512.02012, section 4.3), as released: conditions are tokens.

Before the image's tokens stand those of the class, of the guidance scale w, of both ends of the guidance
interval and of the length of the jump. Each group is learned tokens to which an embedding is added: of the
label; of 1 - 1 / w; of the ends; of s - t. The time t itself it is not told. Positions are rotary, along the
whole sequence; blocks have gates that are weights.

Guidance is what the network was trained with: scale and interval are constants of the backbone here, and one
evaluation is guided.

Mapping: the paper has noise at tau = 1 and the velocity noise - data. s - t is its tau - r; an interval
[a, b] of t is [1 - b, 1 - a] of tau; the sign of the velocity is turned when weights are adopted
(import_weights.py).

Deviations from the paper:

* The second head, which learns the velocity and is not used in sampling, is not here.
* Queries, keys and values are one layer, as are the two halves of SwiGLU: the same numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import backbones as specs
from ..core.precision import full_precision, upcast
from .layers import (
    Attention,
    LabelEmbedding,
    Norm,
    PatchEmbedding,
    SwiGLU,
    TimeEmbedding,
    rotary_angles,
    unpatchify,
    zero,
)

FEATURES, PERIOD = 256, 1.0e4
"""Sinusoids of an embedded number, and their highest over lowest frequency, which is 1 rad per unit."""


class GatedBlock(nn.Module):
    """Transformer block with weights for gates, which start at 0."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = Norm("rms", width)
        self.attn = Attention(width, heads, qk_norm=True, norm="rms", bias=False)
        self.norm2 = Norm("rms", width)
        self.mlp = SwiGLU(width, 8 * width // 3, bias=False)
        self.attn_scale = nn.Parameter(torch.zeros(width))
        self.mlp_scale = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, turns: Tensor) -> Tensor:
        """Tokens (B, N, width) and the turns of their positions (N, head / 2, 2)."""
        h = h + self.attn(self.norm1(h), turns) * self.attn_scale
        return h + self.mlp(self.norm2(h)) * self.mlp_scale


class Head(nn.Module):
    """Norm and projection of tokens to patches."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = Norm("rms", width)
        self.linear = nn.Linear(width, features)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(self.norm(h))


def _turns(tokens: int, head: int) -> Tensor:
    """Cosine and sine of each pair of a head's dimensions at each place of the sequence: (N, head / 2, 2)."""
    angles = rotary_angles(torch.arange(tokens, dtype=torch.float64), head)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).to(torch.get_default_dtype())


class Imf(nn.Module):
    """Average velocity F(x, t, s, y), guided; it starts at 0."""

    turns: Tensor

    def __init__(self, spec: specs.Imf) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.spec = spec
        self.patch = spec.patch
        self.grid = (height // spec.patch, width // spec.patch)
        self.x_embedder = PatchEmbedding(channels, spec.width, spec.patch)
        self.y_embedder = LabelEmbedding(spec.classes, spec.width)
        counts = {
            "class": spec.class_tokens,
            "omega": spec.scale_tokens,
            "t_min": spec.interval_tokens,
            "t_max": spec.interval_tokens,
            "time": spec.time_tokens,
        }
        for name in ("omega", "cfg_t_start", "cfg_t_end", "h"):
            setattr(self, f"{name}_embedder", TimeEmbedding(spec.width, FEATURES, 1.0, PERIOD))
        for name, count in counts.items():
            setattr(self, f"{name}_tokens", nn.Parameter(torch.empty(count, spec.width)))
        self.prefix = sum(counts.values())
        self.register_buffer(
            "turns",
            _turns(self.prefix + self.grid[0] * self.grid[1], spec.width // spec.heads),
            persistent=False,
        )
        self.blocks = nn.ModuleList(GatedBlock(spec.width, spec.heads) for _ in range(spec.depth))
        self.final_layer = Head(spec.width, spec.patch**2 * channels)
        for name, weight in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(weight)
            elif name.endswith("_tokens") or "_embedder." in name:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            elif weight.ndim == 2:
                nn.init.normal_(weight, std=0.32 * weight.shape[1] ** -0.5)
        zero(self.final_layer.linear)

    def condition(self, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """The tokens before those of the image, (B, N, width), never in half precision."""
        low, high = self.spec.interval
        with full_precision(y.device.type):
            length = s - t
            constants = [1 - 1 / self.spec.scale, 1 - high, 1 - low]
            omega, start, end = (torch.full_like(t, constant) for constant in constants)
            groups = [
                (self.class_tokens, self.y_embedder(y)),
                (self.omega_tokens, self.omega_embedder(omega)),
                (self.t_min_tokens, self.cfg_t_start_embedder(start)),
                (self.t_max_tokens, self.cfg_t_end_embedder(end)),
                (self.time_tokens, self.h_embedder(length)),
            ]
            return torch.cat([tokens + embedding[:, None] for tokens, embedding in groups], dim=1)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Evaluate the network; arguments and result as of `lightningdit.LightningDiT.forward`."""
        if s is None:
            raise ValueError("this network is told s - t: give s")
        h = torch.cat([self.condition(t, s, y).to(x.dtype), self.x_embedder(x).to(x.dtype)], dim=1)
        turns = upcast(self.turns)
        for block in self.blocks:
            h = block(h, turns)
        patches = self.final_layer(h[:, self.prefix :])
        return unpatchify(patches, self.grid, self.patch).to(x.dtype)
