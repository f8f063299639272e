"""The demo's tokenizer: a convolutional autoencoder with a noisy, mildly penalised latent.

    L = mean (D(E(x) + noise * n) - x)^2 + penalty * mean E(x)^2,   n ~ N(0, I)

A variational autoencoder (arXiv 1312.6114) whose posterior has one fixed width: the noise makes
the latent space smooth, the penalty keeps the noise from being outgrown.

The network is called as ``net(x, noise)``, with the noise in the latent's shape, and returns the
reconstruction and the latent before noise; it has a method ``encode``.
"""

from __future__ import annotations

import torch
from torch import nn

from ...core.losses import mean_square
from ...core.method import Batch, Context, LossOutput, Method
from ...core.wrappers import unwrap
from .params import AutoencoderParams


class Autoencoder(Method):
    params: AutoencoderParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p, x = self.params, batch.x1
        with torch.no_grad():
            shape = unwrap(net).encode(x[:1]).shape[1:]
        noise = p.noise * ctx.rng.normal_like("latent", x.new_empty((len(x), *shape)))
        reconstruction, latent = net(x, noise)
        error = mean_square(reconstruction, x).mean()
        size = latent.square().mean()
        return LossOutput(
            error + p.penalty * size, {"loss_mse": error.detach(), "latent_square": size.detach()}
        )
