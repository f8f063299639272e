"""LightningDiT (arXiv 2501.01423) with an optional target time and an optional second head.

The state dict has the names and shapes of the published checkpoints: 351 tensors at XL/1 without
query-key norm, 407 with it (the FACM teacher), and four more for the target-time embedding
(arXiv 2507.03738). The time enters as t in [0, 1], noise at 0, not multiplied by 1000.

With ``norm: layer``, ``mlp: gelu`` and ``rope: false`` it is SiT (arXiv 2401.08740), which has the layers of
DiT; with ``norm: rms-plain`` and ``qk_norm: true`` it is TiT (arXiv 2505.07447). With ``predicts: noise`` it
is DiT itself (arXiv 2212.09748), which predicts the noise of a discrete diffusion, as a velocity field.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ..config import backbones as specs
from ..core.path import append_dims
from ..core.precision import full_precision, upcast
from ..core.pyramid import pack, sides, unpack
from .layers import (
    Block,
    Conditioned,
    FinalLayer,
    LabelEmbedding,
    Norm,
    PatchEmbedding,
    RotaryTable,
    ScalarHead,
    TimeEmbedding,
    sincos_table,
    unpatchify,
    zero,
)

STEPS = 1000
"""Of the diffusion of `NoiseDiT`."""


class LightningDiT(Conditioned):
    """Average velocity F(x, t, s, y) of a latent flow.

    With ``target_time`` off, s is ignored; with it on, the network starts independent of s. With
    ``outputs: 2`` there is a second final layer, ``final_layer_u``, that starts equal to the first, and the
    result is the pair (velocity, flow map). With ``scalar`` it is F and one number for each sample, (B,).
    """

    y_embedder: LabelEmbedding

    def __init__(self, spec: specs.LightningDiT) -> None:
        super().__init__()
        self.spec = spec
        channels, height, width = spec.shape
        self.patch = spec.patch
        self.grid = (height // spec.patch, width // spec.patch)
        self.pos_embed = nn.Parameter(sincos_table(*self.grid, spec.width), requires_grad=False)
        self.x_embedder = PatchEmbedding(channels, spec.width, spec.patch)
        self.embed(spec, spec.width, labels=True)
        self.feat_rope = RotaryTable(*self.grid, spec.width // spec.heads) if spec.rope else None
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.qk_norm, spec.norm, spec.mlp) for _ in range(spec.depth)
        )
        features = spec.patch**2 * channels
        self.final_layer = FinalLayer(spec.width, features, spec.norm)
        self.final_layer_u = FinalLayer(spec.width, features, spec.norm) if spec.outputs == 2 else None
        tokens = self.grid[0] * self.grid[1]
        self.scalar_head = ScalarHead(tokens * spec.width) if spec.scalar else None
        _draw_layers(self)
        normal = [self.y_embedder.embedding_table.weight]
        normal += [self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight]
        if self.r_embedder is not None:
            normal.append(self.r_embedder.mlp[0].weight)
            zero(self.r_embedder.mlp[2])
        for weight in normal:
            nn.init.normal_(weight, std=0.02)
        zero(*(layer.adaLN_modulation[1] for layer in (*self.blocks, self.final_layer)))
        zero(self.final_layer.linear)
        if self.scalar_head is not None:
            zero(self.scalar_head[4])
        if self.final_layer_u is not None:
            self.final_layer_u.load_state_dict(self.final_layer.state_dict())

    @property
    def units(self) -> list[nn.Module]:
        """What is sharded one by one: blocks that are called once in a forward."""
        return [*self.blocks] if self.spec.repeats == 1 else []

    def critic(self) -> Critic:
        """A fresh network of the same layers that gives each sample a number."""
        return Critic(self.spec)

    def classifier(self) -> LatentClassifier:
        """A fresh network of the same layers, half as many, that tells classes of noisy samples."""
        return LatentClassifier(self.spec)

    def conditions(self, t: Tensor, s: Tensor | None, y: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each block is told in the order of their calls, and the final layers, (B, width) each.

        Of repeated blocks each pass k of K has the embedding of the time k / K added (arXiv 2511.22475).
        Decoupled blocks are told t, and from a depth on s (arXiv 2510.24474).
        """
        depth, repeats, early = len(self.blocks), self.spec.repeats, self.spec.decoupled
        if early is not None:
            if s is None:
                raise ValueError("this network is told the target time: give s")
            first, c = self.condition(t, None, y), self.condition(s, None, y)
            return [first if number < early else c for number in range(depth)], c
        c = self.condition(t, s, y)
        if repeats == 1:
            return [c] * depth, c
        with full_precision(y.device.type):
            passes = [c + self.t_embedder(torch.full_like(t, k / repeats)) for k in range(repeats)]
        return [told for told in passes for _ in range(depth)], c

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate the network.

        Args:
            x: noisy latents (B, C, H, W), in the dtype of the weights (any under autocast).
            t: times (B,), in [0, 1].
            s: target times (B,); None is allowed without ``target_time``.
            y: labels (B,), int64; ``classes`` is the unconditional one.

        Returns:
            The average velocity (B, C, H, W) in the dtype of ``x``, or (velocity, flow map) with two outputs,
            or velocity and scalar (B,).
        """
        conditions, c = self.conditions(t, s, y)
        h = self.x_embedder(x) + self.pos_embed
        turns = self.feat_rope() if self.feat_rope is not None else None
        for block, own in zip([*self.blocks] * self.spec.repeats, conditions, strict=True):
            h = block(h, own, turns)
        velocity = unpatchify(self.final_layer(h, c), self.grid, self.patch).to(x.dtype)
        if self.scalar_head is not None:
            return velocity, self.scalar_head(h).to(x.dtype)
        if self.final_layer_u is None:
            return velocity
        return velocity, unpatchify(self.final_layer_u(h, c), self.grid, self.patch).to(x.dtype)


class TokenReader(LightningDiT):
    """Numbers for each sample, read from a token of its own (arXiv 2511.22475, section 4).

    Without target time. The token has no position; a norm without gain and offset and a linear layer read it.
    """

    def __init__(self, spec: specs.LightningDiT, numbers: int, bias: bool, depth: int) -> None:
        once = {"target_time": False, "outputs": 1, "decoupled": None, "repeats": 1, "depth": depth}
        super().__init__(spec.model_copy(update=once))
        self.token = nn.Parameter(0.02 * torch.randn(spec.width))
        self.final_layer = nn.Sequential(Norm("layer", spec.width), nn.Linear(spec.width, numbers, bias=bias))

    def read(self, x: Tensor, c: Tensor) -> Tensor:
        """The numbers (B, n) of points x (B, C, H, W), conditioned on c (B, width)."""
        h = self.x_embedder(x) + self.pos_embed
        h = torch.cat([self.token.to(h.dtype).expand(len(h), 1, -1), h], dim=1)
        turns = self.feat_rope() if self.feat_rope is not None else None
        if turns is not None:
            still = torch.stack([torch.ones_like(turns[:1, :, 0]), torch.zeros_like(turns[:1, :, 1])], dim=-1)
            turns = torch.cat([still, turns])
        for block in self.blocks:
            h = block(h, c, turns)
        return upcast(self.final_layer(h[:, 0]))


class Critic(TokenReader):
    """A number for each sample, D(x, t, y)."""

    def __init__(self, spec: specs.LightningDiT) -> None:
        super().__init__(spec, 1, bias=False, depth=spec.depth)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """D, (B,), of points x (B, C, H, W) at times t (B,) with labels y (B,)."""
        return self.read(x, self.condition(t, None, y))[:, 0]


class LatentClassifier(TokenReader):
    """Logits of the classes of noisy samples, C(x, t)."""

    def __init__(self, spec: specs.LightningDiT) -> None:
        super().__init__(spec, spec.classes, bias=True, depth=-(-spec.depth // 2))
        del self.y_embedder

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (B, classes) of points x (B, C, H, W) at times t (B,)."""
        with full_precision(x.device.type):
            c = self.t_embedder(t)
        return self.read(x, c)


def _draw_layers(net: nn.Module) -> None:
    """Initial weights of all linear layers and convolutions."""
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            nn.init.zeros_(module.bias)


class Scale(nn.Module):
    """What a scale of `PyramidDiT` has of its own, named as in `LightningDiT` for the finest."""

    def __init__(self, spec: specs.LightningDiT, patch: int) -> None:
        super().__init__()
        channels = spec.shape[0]
        self.x_embedder = PatchEmbedding(channels, spec.width, patch)
        self.t_embedder = TimeEmbedding(spec.width, spec.time_features, spec.time_scale, spec.time_period)
        self.final_layer = FinalLayer(spec.width, patch**2 * channels, spec.norm)
        _draw_layers(self)
        for index in (0, 2):
            nn.init.normal_(self.t_embedder.mlp[index].weight, std=0.02)
        zero(self.final_layer.adaLN_modulation[1], self.final_layer.linear)


class PyramidDiT(LightningDiT):
    """Velocities of all scales of a Laplacian pyramid (decomposable flow matching, arXiv 2506.19839).

    The scales, coarsest first, have patches of as many tokens, which are summed, as are the embeddings of
    their times; every scale has a final layer. ``coarse`` are all scales but the finest.
    """

    def __init__(self, spec: specs.LightningDiT) -> None:
        super().__init__(spec)
        self.sides = sides(spec.shape[1], spec.shape[2], spec.scales)
        levels = reversed(range(1, spec.scales))
        self.coarse = nn.ModuleList(Scale(spec, spec.patch >> level) for level in levels)

    def condition(self, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Sum of the embeddings of the scales' times (B, S) and the labels (B,): (B, width)."""
        *coarse, finest = t.unbind(1)
        c = super().condition(finest, s, y)
        with full_precision(y.device.type):
            for scale, time in zip(self.coarse, coarse, strict=True):
                c = c + scale.t_embedder(time)
        return c

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: the noisy scales (B, C, P) as `core.pyramid.pack` has them; one that is not there yet is zero.
            t: times of the scales (B, S), in [0, 1]; 0 of one that is not there yet.
            s: ignored.
            y: labels (B,), int64; ``classes`` is the unconditional one.

        Returns:
            The velocities of the scales (B, C, P) in the dtype of ``x``.
        """
        c = self.condition(t, None, y)
        own = [*self.coarse, self]
        h = self.pos_embed
        for scale, part in zip(own, unpack(x, self.sides), strict=True):
            h = h + scale.x_embedder(part)
        turns = self.feat_rope() if self.feat_rope is not None else None
        for block in self.blocks:
            h = block(h, c, turns)
        found = [
            unpatchify(scale.final_layer(h, c), self.grid, height // self.grid[0])
            for scale, (height, _) in zip(own, self.sides, strict=True)
        ]
        return pack(found).to(x.dtype)


@cache
def noise_levels() -> Tensor:
    """log(a / b) of the steps, rising: from the last to the first, float64."""
    beta = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    kept = torch.log1p(-beta).cumsum(0)  # log a^2
    return (kept - torch.log(-torch.expm1(kept))).flip(0) / 2


def diffusion_step(t: Tensor) -> tuple[Tensor, Tensor]:
    """The diffusion's step k for times t (B,), and the times as far as there are steps; both float64."""
    first, last = torch.sigmoid(noise_levels()[[0, -1]]).tolist()  # t / (1 - t) = a / b
    t = t.double().clamp(first, last)
    rising, level = noise_levels().to(t.device), torch.logit(t)
    above = torch.searchsorted(rising, level).clamp(1, STEPS - 1)
    low, high = rising[above - 1], rising[above]
    return STEPS - above - (level - low) / (high - low), t


class NoiseDiT(LightningDiT):
    """DiT: the same layers and names; called alike, for the velocity at s = t alone.

    Mapping: at step k of 0..999 the diffusion has z = a y + b e with data y, noise e, a^2 + b^2 = 1 and
    a^2 = (1 - beta_0) ... (1 - beta_k), beta rising evenly from 1e-4 to 0.02 (arXiv 2006.11239). A point
    x_t = t x1 + (1 - t) x0 divided by r = sqrt(t^2 + (1 - t)^2) is one with a = t / r and b = (1 - t) / r.
    The network's output there is E[x0 | x_t], hence the velocity E[x1 - x0 | x_t] = (x_t - E[x0 | x_t]) / t.

    Deviations from the paper:

    * Between two trained steps log(a / b) is interpolated in k; the network's embedding takes any number.
    * The steps reach from t = 0.0063 (k = 999) to t = 0.99 (k = 0): beyond them the field is that at the end.
    * The learned variance belongs to the discrete sampler and is dropped when weights are adopted.
    """

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Velocity (B, C, H, W) at points x of the straight path and times t (B,); s is ignored."""
        k, t = diffusion_step(t)
        r = torch.hypot(t, 1 - t)
        e = super().forward(x / append_dims(r, x).to(x.dtype), k.to(x.dtype), None, y)
        assert not isinstance(e, tuple)
        return (x - e) / append_dims(t, x).to(x.dtype)
