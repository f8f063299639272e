"""The generative equilibrium transformer, GET (arXiv 2401.08639, section 4): noise to data without times.

An injection transformer reads the noise, once. A linear map of its tokens, and an embedding of the class, are
added to the queries, keys and values of a few blocks whose weights are tied over all iterations:

    u = W InjectionT(x, c),   z_(k+1) = EquilibriumT(z_k, u, c),   G_k = unpatchify(W_out norm(z_k)),

k = 0 .. iterations - 1. The class is added in the same way in the blocks of the injection transformer. The
last of the G_k is the image. For CIFAR-10 the sizes T, M, S, B and B+ have 8.56, 19.2, 37.2, 62.2 and 83.5 M
weights.

Mapping: the paper's network returns the image G; ours the average velocity G - x from t = 0 to t = 1, so that
one step of any sampler of such velocities gives G.

Gradients pass through all iterations, unrolled, as in the release. With ``without_gradient`` they pass
through the last ones alone: the phantom gradient (arXiv 2111.05177) with damping 1.

Deviations from the paper:

* The release draws z_0 ~ N(0, I) anew in every call. Here it is drawn once, with the initial weights, and
  kept in the model file: a network draws no random numbers, and images depend on their own noise alone.
* The table of classes has a last row for no class, as our other networks have it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import backbones as specs
from .layers import Attention, Gelu, LabelEmbedding, PatchEmbedding, sincos_table, unpatchify, zero

EPS = 1e-6


class InjectedBlock(nn.Module):
    """Transformer block with what is injected added to queries, keys and values."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, qk_norm=False, norm="layer")
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Gelu(width, int(width * mlp_ratio), approximate="none")

    def forward(self, h: Tensor, injected: Tensor | None) -> Tensor:
        """Tokens (B, N, width) and what is injected (B, N or 1, 3 width)."""
        h = h + self.attn(self.norm1(h), None, injected)
        return h + self.mlp(self.norm2(h))


class Equilibrium(nn.Module):
    """Tied blocks, iterated from a fixed start.

    One call holds all iterations: FSDP2 gathers the tied weights and reduces their gradients once.
    """

    start: Tensor

    def __init__(self, spec: specs.Get, tokens: int) -> None:
        super().__init__()
        self.iterations = spec.iterations
        self.without_gradient = spec.without_gradient
        self.inject = nn.Linear(spec.width, 3 * spec.width * spec.tied, bias=False)
        self.blocks = nn.ModuleList(
            InjectedBlock(spec.width, spec.heads, spec.tied_mlp_ratio) for _ in range(spec.tied)
        )
        self.register_buffer("start", torch.randn(1, tokens, spec.width))

    def forward(self, h: Tensor, c: Tensor | None) -> list[Tensor]:
        """States (B, N, width) after each iteration with a gradient, for the injection's tokens and class."""
        injected = self.inject(h).chunk(len(self.blocks), dim=-1)
        if c is not None:
            injected = tuple(one + c for one in injected)
        z = self.start.expand(len(h), -1, -1)
        states = []
        for k in range(self.iterations):
            recorded = k >= self.without_gradient
            with torch.set_grad_enabled(recorded and torch.is_grad_enabled()):
                for block, one in zip(self.blocks, injected, strict=True):
                    z = block(z, one)
            if recorded:
                states.append(z)
        return states


class Get(nn.Module):
    """Average velocity from noise to data, at t = 0 and s = 1 whatever times are given; it starts as -x."""

    def __init__(self, spec: specs.Get) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.patch = spec.patch
        self.grid = (height // spec.patch, width // spec.patch)
        self.pos_embed = nn.Parameter(sincos_table(*self.grid, spec.width), requires_grad=False)
        self.x_embedder = PatchEmbedding(channels, spec.width, spec.patch)
        self.y_embedder = LabelEmbedding(spec.classes, 3 * spec.width) if spec.conditional else None
        self.injection = nn.ModuleList(
            InjectedBlock(spec.width, spec.heads, spec.mlp_ratio) for _ in range(spec.depth)
        )
        self.equilibrium = Equilibrium(spec, self.grid[0] * self.grid[1])
        self.norm = nn.LayerNorm(spec.width, eps=EPS)
        self.final_layer = nn.Linear(spec.width, spec.patch**2 * channels)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        zero(self.final_layer)

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled and recomputed one by one."""
        return [*self.injection, *self.equilibrium.blocks]

    @property
    def units(self) -> list[nn.Module]:
        """What is sharded one by one: each is called once in a forward."""
        return [*self.injection, self.equilibrium]

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor, iterates: bool = False) -> Tensor:
        """Evaluate the network at noise x (B, C, H, W) and labels y (B,); the times are ignored.

        Args:
            iterates: return what each iteration with a gradient gives, (K, B, C, H, W), not the last alone.

        Returns:
            G - x, (B, C, H, W), in the dtype of ``x``.
        """
        c = self.y_embedder(y)[:, None] if self.y_embedder is not None else None
        h = self.x_embedder(x) + self.pos_embed
        for block in self.injection:
            h = block(h, c)
        states = self.equilibrium(h, c)
        if not iterates:
            return self._decoded(states[-1], x)
        whole = self._decoded(torch.cat(states), x.repeat(len(states), 1, 1, 1))
        return whole.unflatten(0, (len(states), len(x)))

    def _decoded(self, z: Tensor, x: Tensor) -> Tensor:
        image = unpatchify(self.final_layer(self.norm(z)), self.grid, self.patch)
        return image.to(x.dtype) - x
