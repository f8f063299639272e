"""Networks of random weights, and what goes into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones import build
from ..config.settings import ConvAutoencoder, LdmAutoencoder, LightningDiT
from ..data import vavae
from ..data.tokenizers import Autoencoder, KlAutoencoder
from .cases import DEVICE


def images(count: int, channels: int, size: int) -> Tensor:
    return torch.rand(count, channels, size, size, device=DEVICE) * 2 - 1


def autoencoder() -> Autoencoder:
    network = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=48, latent=4))
    return Autoencoder(network.eval().requires_grad_(False), DEVICE)


def vavae_of(large: bool) -> KlAutoencoder:
    shape = (
        LdmAutoencoder()
        if large
        else LdmAutoencoder(channels=32, multipliers=[1, 2], attention=[1], blocks=1)
    )
    return KlAutoencoder(vavae.build(shape, 32), "sample", DEVICE)


def network(large: bool) -> tuple[nn.Module, LightningDiT]:
    spec = LightningDiT(shape=[4, 4, 4], classes=10, depth=3, width=64, heads=2, patch=2)
    if large:
        spec = LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16)
    return build(spec).to(DEVICE), spec
