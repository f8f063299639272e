"""Tokenizers: images in [-1, 1] to raw latents and back. The only way to a VAE.

Normalisation (mean, std, multiplier) is not done here but belongs to the latents' manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import load_network
from ..common.files import sha256
from ..config import ConfigError
from ..config.settings import Backbone, ConvAutoencoder, LdmAutoencoder, Tokenizer
from ..core.rng import generator
from . import vavae
from .records import Record, read_record

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


DECODED = 25
"""Images decoded at once, whatever is asked for: 250 of 256x256 would take tens of GB in float32."""


class Coder(Protocol):
    """Both directions of a tokenizer, without gradients."""

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] to raw latents float32 (n, c, h, w), or moments (n, 2 c, h, w).

        ``indices`` (of the images in the data set) and ``view`` (1: mirrored) name the random draw
        of a tokenizer that samples its posterior, so that it does not depend on the batching.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents to images float32, clamped to [-1, 1] (points are not)."""
        ...


def open_tokenizer(
    tokenizer: Tokenizer,
    weights: Path | None,
    backbone: Backbone | None,
    device: torch.device | str = "cpu",
) -> Coder:
    """Load a tokenizer.

    Args:
        weights: a model file of this workflow (autoencoder), or the record of a fetched asset.
        backbone: network of an autoencoder.

    Raises:
        ValueError: weights that are missing, of the wrong kind, or do not fit.
    """
    if tokenizer.plain:
        return Pixels() if tokenizer.kind == "pixels" else Points()
    if weights is None:
        raise ConfigError(f"tokenizer.kind: {tokenizer.kind} needs a weights file; pass --tokenizer")
    if tokenizer.kind != "autoencoder":
        load = _vavae if tokenizer.kind == "vavae" else _stable_diffusion
        return KlAutoencoder(load(tokenizer, read_record(weights)), tokenizer.posterior, device)
    if not isinstance(backbone, ConvAutoencoder):
        raise ConfigError(f"{weights}: tokenizer.kind: autoencoder needs a conv-autoencoder backbone")
    network, _ = load_network(weights, backbone)
    return Autoencoder(network, device)


def weights_digest(weights: Path | None) -> str | None:
    """SHA-256 of a tokenizer's weights: of the model file, or of the files that a record names."""
    if weights is None:
        return None
    return read_record(weights).digest if weights.suffix == ".json" else sha256(weights)


class Pixels:
    """The images themselves."""

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1)


class Points:
    """Data that are not images, themselves: without bounds."""

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Autoencoder:
    """The workflow's own convolutional autoencoder."""

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        self._network: Any = network.to(device)
        self._device = device

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        return self._network.encode(images.to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(latents.to(self._device)).clamp(-1, 1)


class KlAutoencoder:
    """A diffusers AutoencoderKL in float32 (sd-vae-ft-mse, VA-VAE and their like)."""

    def __init__(self, vae: AutoencoderKL, posterior: str, device: torch.device | str) -> None:
        self._vae = vae.eval().requires_grad_(False).to(device)
        self._device = device
        self._posterior = posterior

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        posterior = self._vae.encode(images.to(self._device)).latent_dist
        if self._posterior == "mean":
            return posterior.mean
        if self._posterior == "moments":
            return torch.cat([posterior.mean, posterior.std], dim=1)
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=generator(0, "posterior", index, view)) for index in indices]
        return posterior.mean + posterior.std * torch.stack(noise).to(self._device)

    def decode(self, latents: Tensor) -> Tensor:
        pieces = latents.to(self._device).split(DECODED)
        return torch.cat([self._vae.decode(piece).sample.clamp(-1, 1) for piece in pieces])


def _stable_diffusion(tokenizer: Tokenizer, record: Record) -> AutoencoderKL:
    """A repository in diffusers' layout, from safetensors only."""
    from diffusers import AutoencoderKL

    names = [file.name for file in record.body.files if file.name.endswith(".safetensors")]
    name = (tokenizer.weights and tokenizer.weights.file) or (names[0] if len(names) == 1 else None)
    if name is None:
        raise ConfigError(
            f"{record.path}: tokenizer.weights.file: name one .safetensors file; it has {names or 'none'}"
        )
    folder = record.file(name).parent
    try:
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a diffusers autoencoder: {error}") from None


def _vavae(tokenizer: Tokenizer, record: Record) -> AutoencoderKL:
    assert tokenizer.weights is not None and tokenizer.weights.file is not None
    path = record.file(tokenizer.weights.file)
    return vavae.load(path, tokenizer.network or LdmAutoencoder(), tokenizer.shape[0])
