"""diffusers' AutoencoderKL as a tokenizer that is trained here, without its quantisation convolutions."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ..config import backbones as specs

NO_WIDTH = -30.0
"""Logarithm of the posterior's variance, the least that diffusers knows: a sample of it is its mean."""


class KlAutoencoder(nn.Module):
    """Images (B, C, H, W) <-> latents (B, latent, H / 2^k, W / 2^k), k levels less one.

    The state dict has diffusers' names below ``vae.``. The latent is the posterior's mean; the variance is
    not trained, and starts as none.
    """

    def __init__(self, spec: specs.KlAutoencoder) -> None:
        super().__init__()
        levels = len(spec.widths)
        self.vae = AutoencoderKL(
            in_channels=spec.shape[0],
            out_channels=spec.shape[0],
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(spec.widths),
            layers_per_block=spec.blocks,
            latent_channels=spec.latent,
            norm_num_groups=spec.groups,
            sample_size=spec.shape[1],
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        out = self.vae.encoder.conv_out
        with torch.no_grad():
            out.weight[spec.latent :] = 0
            out.bias[spec.latent :] = NO_WIDTH

    @property
    def decoder(self) -> nn.Module:
        return self.vae.decoder

    def encode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] to latents, not normalised."""
        return self.vae.encoder(x).chunk(2, dim=1)[0]

    def decode(self, z: Tensor) -> Tensor:
        """Latents to images; not clamped."""
        return self.vae.decoder(z)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reconstruction and clean latent; ``noise``, shaped like the latent, is added before decoding."""
        z = self.encode(x)
        return self.decode(z if noise is None else z + noise), z
