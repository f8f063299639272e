"""The transformer of Stable Diffusion 3 (arXiv 2403.03206), diffusers' class unchanged, as net(x, t, s, y).

The state dict has diffusers' names below ``transformer.``; the embedding of the target time,
``time_text_embed.target_embedder``, is the only part that published weights lack.

Mapping: SD3 has its data at sigma = 0 and its noise at sigma = 1, where sigma = 1 - t here; its network is
given the timestep 1000 sigma and predicts noise - data, the negative of the velocity here. With a
``time_scale`` other than 1000, SD3's own, the sinusoids of the timestep turn slower by that factor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding
from torch import Tensor, nn

from ..config import backbones as specs
from ..config.methods import Reembed
from ..core.precision import full_precision, upcast
from .layers import zero
from .reembedding import fit_embedder

Captions = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Context (B, L, D) and pooled embedding (B, P) of captions y (B,), int64: data/text_store.py."""


class TwoTimes(CombinedTimestepTextProjEmbeddings):
    """The embedding of a timestep and a caption, of one timestep more where it has a ``target_embedder``."""

    target_embedder: TimestepEmbedding | None

    @classmethod
    def adopt(
        cls, embedding: CombinedTimestepTextProjEmbeddings, time_scale: float, target_time: bool
    ) -> TwoTimes:
        """Turn an embedding into one of this class, in place: its weights and their names stay.

        The embedding of the target time starts at zero, so that the network starts independent of it.
        """
        embedding.__class__ = cls
        embedding.time_proj.scale = time_scale / specs.SD3_TIMESTEPS
        embedding.target_embedder = None
        if target_time:
            layer = embedding.timestep_embedder
            embedding.target_embedder = TimestepEmbedding(
                layer.linear_1.in_features, layer.linear_2.out_features
            )
            zero(embedding.target_embedder.linear_2)
        adopted: TwoTimes = embedding
        return adopted

    def forward(self, timestep: Tensor, pooled_projection: Tensor) -> Tensor:
        """Timesteps (B,), or (B, 2) with the target's, and pooled captions (B, P): (B, width).

        Never in half precision: the derivative with respect to the times passes through here, and costs
        little.
        """
        with full_precision(pooled_projection.device.type):
            if timestep.ndim == 1:
                return super().forward(timestep, pooled_projection)
            assert self.target_embedder is not None
            now, target = timestep.unbind(1)
            embedded = self.target_embedder(self.time_proj(target).to(pooled_projection.dtype))
            return super().forward(now, pooled_projection) + embedded


class Sd3(nn.Module):
    """Average velocity F(x, t, s, y) of a latent flow, where y are numbers of captions.

    With ``target_time`` off, s is ignored. With ``lora`` there are adapters (`lora.add_adapters`), and only
    they and the embedding of the target time are trained.
    """

    trained: frozenset[str] | None
    """Names of the weights that are trained, where others are frozen."""

    def __init__(self, spec: specs.Sd3) -> None:
        super().__init__()
        channels, height, _ = spec.shape
        width = spec.heads * spec.head_width
        self.transformer = SD3Transformer2DModel(
            sample_size=height,
            patch_size=spec.patch,
            in_channels=channels,
            out_channels=channels,
            num_layers=spec.layers,
            attention_head_dim=spec.head_width,
            num_attention_heads=spec.heads,
            joint_attention_dim=spec.context,
            caption_projection_dim=width,
            pooled_projection_dim=spec.pooled,
            pos_embed_max_size=spec.positions,
            dual_attention_layers=tuple(range(spec.dual_attention)),
            qk_norm="rms_norm" if spec.qk_norm else None,
        )
        # As SD3 and DiT start: each block is the identity, and the output zero.
        for block in self.transformer.transformer_blocks:
            zero(block.norm1.linear, block.norm1_context.linear)
        zero(self.transformer.norm_out.linear, self.transformer.proj_out)
        TwoTimes.adopt(self.transformer.time_text_embed, spec.time_scale, spec.target_time)
        self.spec = spec
        self._text: Captions | None = None
        self.trained = None
        if spec.lora is not None:
            from .lora import add_adapters

            add_adapters(self.transformer, spec.lora)
            if spec.target_time:
                self.transformer.time_text_embed.target_embedder.requires_grad_(True)
            self.trained = frozenset(name for name, weight in self.named_parameters() if weight.requires_grad)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.transformer_blocks

    def fit_time(self, teacher: Sd3) -> None:
        """Let the embedding of t follow that of ``teacher``, whose weights it has at another time_scale.

        In place, on the CPU; see `reembedding.fit_embedder`.
        """
        old, own = (net.transformer.time_text_embed.timestep_embedder for net in (teacher, self))
        fitted = fit_embedder(old, teacher.spec.time_scale, self.spec.time_scale, Reembed(of="teacher"))
        own.load_state_dict(fitted.state_dict())

    @property
    def text(self) -> Captions | None:
        """What `backbones.use_text` has set; no part of the state dict."""
        return self._text

    @text.setter
    def text(self, store: Captions) -> None:
        """Raises a ValueError if a store has embeddings of other widths than the network."""
        content = getattr(store, "content", None)  # a plain function has none
        wanted = self.spec.context, self.spec.pooled
        if content is not None and (found := (content.context[-1], content.pooled)) != wanted:
            raise ValueError(
                f"captions of widths {found[0]} and {found[1]} do not fit backbone.context {wanted[0]} and "
                f"backbone.pooled {wanted[1]}"
            )
        self._text = store

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Evaluate the network.

        Args:
            x: noisy latents (B, C, H, W), in the dtype of the weights (any under autocast).
            t: times (B,), in [0, 1].
            s: target times (B,); None leaves their embedding out, as in a network without it.
            y: captions (B,), int64; -1 is the empty one.

        Returns:
            The average velocity (B, C, H, W) in the dtype of ``x``.

        Raises:
            ValueError: no text store was given.
        """
        if self.text is None:
            raise ValueError("backbone sd3 knows no captions: give a text store (--text, or use_text)")
        dtype = self.transformer.context_embedder.weight.dtype
        context, pooled = (embedding.to(dtype) for embedding in self.text(y))
        times = upcast(t)
        if self.spec.target_time and s is not None:
            times = torch.stack([times, upcast(s)], dim=1)
        (velocity,) = self.transformer(
            x,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            timestep=specs.SD3_TIMESTEPS * (1 - times),
            return_dict=False,
        )
        return -velocity.to(x.dtype)
