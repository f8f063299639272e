"""LightningDiT (arXiv 2501.01423) with an optional target time and an optional second head.

The state dict has the names and shapes of the published checkpoints: 351 tensors at XL/1 without
query-key norm, 407 with it (the FACM teacher), and four more for the target-time embedding
(arXiv 2507.03738). The time enters as t in [0, 1], noise at 0, not multiplied by 1000.

With ``norm: layer``, ``mlp: gelu`` and ``rope: false`` it is SiT (arXiv 2401.08740), which has the layers of
DiT; with ``norm: rms-plain`` and ``qk_norm: true`` it is TiT (arXiv 2505.07447).
"""

from __future__ import annotations

from torch import Tensor, nn

from ..config import settings
from .conditioned import Conditioned
from .layers import Block, FinalLayer, LabelEmbedding, PatchEmbedding, RotaryTable, sincos_table


class LightningDiT(Conditioned):
    """Average velocity F(x, t, s, y) of a latent flow.

    With ``target_time`` off, s is ignored. With it on, the network starts independent of s, because
    the last layer of its embedding (``r_embedder``) is zero.

    With ``outputs: 2`` there is a second final layer, ``final_layer_u``, that starts equal to the
    first, and the result is the pair (velocity, flow map).
    """

    y_embedder: LabelEmbedding

    def __init__(self, spec: settings.LightningDiT) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.channels = channels
        self.patch = spec.patch
        self.grid = (height // spec.patch, width // spec.patch)
        self.pos_embed = nn.Parameter(sincos_table(*self.grid, spec.width), requires_grad=False)
        self.x_embedder = PatchEmbedding(channels, spec.width, spec.patch)
        self.embed(spec, spec.width, labels=True)
        self.feat_rope = RotaryTable(*self.grid, spec.width // spec.heads) if spec.rope else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(spec.width, spec.heads, spec.qk_norm, spec.norm, spec.mlp) for _ in range(spec.depth)
        )
        features = spec.patch**2 * channels
        self.final_layer = FinalLayer(spec.width, features, spec.norm)
        self.final_layer_u = FinalLayer(spec.width, features, spec.norm) if spec.outputs == 2 else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                nn.init.zeros_(module.bias)
        normal = [self.y_embedder.embedding_table.weight]
        normal += [self.t_embedder.mlp[0].weight, self.t_embedder.mlp[2].weight]
        zero = [layer.adaLN_modulation[1] for layer in (*self.blocks, self.final_layer)]
        zero.append(self.final_layer.linear)
        if self.r_embedder is not None:
            normal.append(self.r_embedder.mlp[0].weight)
            zero.append(self.r_embedder.mlp[2])
        for weight in normal:
            nn.init.normal_(weight, std=0.02)
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.final_layer_u is not None:
            self.final_layer_u.load_state_dict(self.final_layer.state_dict())

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Patches (B, N, patch * patch * C), channels last, as (B, C, H, W)."""
        rows, columns = self.grid
        p = self.patch
        image = patches.unflatten(2, (p, p, self.channels)).unflatten(1, (rows, columns))
        return image.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, rows * p, columns * p)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate the network.

        Args:
            x: noisy latents (B, C, H, W), in the dtype of the weights (any under autocast).
            t: times (B,), in [0, 1].
            s: target times (B,); None is allowed without ``target_time``.
            y: labels (B,), int64; ``classes`` is the unconditional one.

        Returns:
            The average velocity (B, C, H, W) in the dtype of ``x``, or (velocity, flow map) with two outputs.
        """
        c = self.condition(t, s, y)
        h = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            h = block(h, c, self.feat_rope)
        velocity = self.unpatchify(self.final_layer(h, c)).to(x.dtype)
        if self.final_layer_u is None:
            return velocity
        return velocity, self.unpatchify(self.final_layer_u(h, c)).to(x.dtype)
