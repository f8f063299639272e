"""Tokenizers: images in [-1, 1] to raw latents and back. The only module that loads a VAE.

Normalisation (mean, std, multiplier) is not done here but belongs to the latents' manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..checkpoint import load_network
from ..config import ConfigError
from ..config.settings import Backbone, ConvAutoencoder, Tokenizer
from ..core.rng import generator
from ..files import sha256
from .records import read_record

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class Coder(Protocol):
    """Both directions of a tokenizer, without gradients."""

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] to raw latents float32 (n, c, h, w).

        ``indices`` (of the images in the data set) and ``view`` (1: mirrored) name the random draw
        of a tokenizer that samples its posterior, so that it does not depend on the batching.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents to images float32, clamped to [-1, 1]."""
        ...


def open_tokenizer(
    tokenizer: Tokenizer,
    weights: Path | None,
    backbone: Backbone | None,
    device: torch.device | str = "cpu",
) -> Coder:
    """Load a tokenizer.

    Args:
        weights: a model file of this workflow (autoencoder) or the record of a fetched asset (sd-vae).
        backbone: network of an autoencoder.

    Raises:
        ValueError: weights that are missing, of the wrong kind, or do not fit; an unsupported kind.
    """
    if tokenizer.kind == "pixels":
        return Pixels()
    if tokenizer.kind == "vavae":
        raise ConfigError("tokenizer.kind: vavae: loading is not implemented")
    if weights is None:
        raise ConfigError(f"tokenizer.kind: {tokenizer.kind} needs a weights file; pass --tokenizer")
    if tokenizer.kind == "sd-vae":
        return StableDiffusionVae(tokenizer, weights, device)
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


class Autoencoder:
    """The workflow's own convolutional autoencoder."""

    def __init__(self, network: nn.Module, device: torch.device | str) -> None:
        self._network: Any = network.to(device)
        self._device = device

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        return self._network.encode(images.to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        return self._network.decode(latents.to(self._device)).clamp(-1, 1)


class StableDiffusionVae:
    """A diffusers AutoencoderKL (sd-vae-ft-mse and its like), float32, from safetensors only."""

    def __init__(self, tokenizer: Tokenizer, record: Path, device: torch.device | str) -> None:
        from diffusers import AutoencoderKL

        found = read_record(record)
        names = [file.name for file in found.body.files if file.name.endswith(".safetensors")]
        name = (tokenizer.weights and tokenizer.weights.file) or (names[0] if len(names) == 1 else None)
        if name is None:
            raise ConfigError(
                f"{record}: tokenizer.weights.file: name one .safetensors file; it has {names or 'none'}"
            )
        folder = found.file(name).parent
        try:
            self._vae: AutoencoderKL = AutoencoderKL.from_pretrained(
                folder, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: not a diffusers autoencoder: {error}") from None
        self._vae.eval().requires_grad_(False).to(device)
        self._device = device
        self._sample = tokenizer.posterior == "sample"

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        posterior = self._vae.encode(images.to(self._device)).latent_dist
        if not self._sample:
            return posterior.mean
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=generator(0, "posterior", index, view)) for index in indices]
        return posterior.mean + posterior.std * torch.stack(noise).to(self._device)

    def decode(self, latents: Tensor) -> Tensor:
        return self._vae.decode(latents.to(self._device)).sample.clamp(-1, 1)
