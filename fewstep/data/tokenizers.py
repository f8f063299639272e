"""Tokenizers: images in [-1, 1] to raw latents and back. The only way to a VAE.

VA-VAE (Yao et al., 2025) and other autoencoders in the layout of latent diffusion (LDM) have the architecture
of diffusers' AutoencoderKL; only the names of their weights differ. Normalisation (mean, std, multiplier) is
not done here but belongs to the latents' manifest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..backbones.model_file import load_network
from ..common.cli import first_few
from ..common.files import sha256
from ..common.tensor_files import load_tensors
from ..config import ConfigError
from ..config.backbones import Backbone, ConvAutoencoder, KlAutoencoder
from ..config.settings import LdmAutoencoder, Tokenizer
from ..core.memory import FittingBatches
from ..core.rng import generator
from .asset_files import read_record

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


KEPT = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
"""Tensors of the autoencoder; a training checkpoint also has a foundation model, losses and more."""
NAMES = {
    "down_blocks": "down",
    "up_blocks": "up",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
    "attentions": "attn",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
}
"""diffusers' parts of names and LDM's."""
DECODED = 25
"""Images decoded at once, whatever is asked for: 250 of 256x256 would take tens of GB in float32, and no
longer be indexed by 32 bits. Fewer where a GPU's memory is short."""


@dataclass(frozen=True)
class Decoding:
    """How a tokenizer decodes; all but the dtype is a matter of speed, and of rounding."""

    dtype: torch.dtype = torch.float32
    """Of weights and activations; images are float32 in any case."""
    channels_last: bool = False
    compile: str = ""
    """Backend of torch.compile, or "" for none."""

    def prepare(self, network: nn.Module, device: torch.device | str) -> None:
        """Move a network to the device, in the decoder's dtype and memory format."""
        network.to(device)
        if self.dtype != torch.float32:
            nn.Module.to(network, self.dtype)  # diffusers' own warns of parts that it does not have
        if self.channels_last:
            network.to(memory_format=torch.channels_last)

    def compiled(self, decoder: nn.Module) -> None:
        """Compile a decoder in place; names of weights stay."""
        if self.compile:
            decoder.forward = torch.compile(decoder.forward, backend=self.compile, dynamic=False)


DEFAULT = Decoding()


class Codec(Protocol):
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
    decoding: Decoding = DEFAULT,
) -> Codec:
    """Load a tokenizer.

    Args:
        weights: a model file of this workflow (autoencoder), or the record of a fetched asset.
        backbone: network of an autoencoder.
        decoding: how it decodes; one that also encodes has the default.

    Raises:
        ValueError: weights that are missing, of the wrong kind, or do not fit.
    """
    if tokenizer.plain:
        return IdentityCodec(bounds=tokenizer.kind == "pixels")
    if weights is None:
        raise ConfigError(f"tokenizer.kind: {tokenizer.kind} needs a weights file; pass --tokenizer")
    if tokenizer.kind == "autoencoder":
        if not isinstance(backbone, ConvAutoencoder | KlAutoencoder):
            raise ConfigError(
                f"{weights}: tokenizer.kind: autoencoder needs a backbone conv-autoencoder or kl-autoencoder"
            )
        return ConvCodec(load_network(weights, backbone)[0], device, decoding)
    record, file = read_record(weights), tokenizer.weights.file if tokenizer.weights else None
    if tokenizer.kind == "vavae":
        path, _ = record.verified(file)
        vae = load_ldm_autoencoder(path, tokenizer.network or LdmAutoencoder(), tokenizer.shape[0])
    else:
        path, _ = record.verified_with_folder(file)
        vae = _load_diffusers_autoencoder(path.parent)
    return KlCodec(vae, tokenizer.posterior, device, decoding)


def weights_digest(weights: Path | None) -> str | None:
    """SHA-256 of a tokenizer's weights: of the model file, or of the files that a record names."""
    if weights is None:
        return None
    return read_record(weights).digest if weights.suffix == ".json" else sha256(weights)


class IdentityCodec:
    """Data that are their own latents: images, or points, which have no ``bounds``."""

    def __init__(self, bounds: bool = True) -> None:
        self._bounds = bounds

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents.clamp(-1, 1) if self._bounds else latents


class ConvCodec:
    """An autoencoder that is trained here."""

    def __init__(self, network: nn.Module, device: torch.device | str, decoding: Decoding = DEFAULT) -> None:
        self.network: Any = network
        self._device, self._dtype = device, decoding.dtype
        decoding.prepare(network, device)
        decoding.compiled(self.network.decoder)

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        latents: Tensor = self.network.encode(images.to(self._device))
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.network.decode(latents.to(self._device, self._dtype))
        return images.float().clamp(-1, 1)


class KlCodec:
    """A diffusers AutoencoderKL (sd-vae-ft-mse, VA-VAE and their like)."""

    def __init__(
        self,
        vae: AutoencoderKL,
        posterior: str,
        device: torch.device | str,
        decoding: Decoding = DEFAULT,
    ) -> None:
        self.network = vae.eval().requires_grad_(False)
        self._device, self._dtype = device, decoding.dtype
        self._posterior = posterior
        decoding.prepare(self.network, device)
        decoding.compiled(self.network.decoder)
        self._fitting = FittingBatches("decoding", DECODED)

    def encode(self, images: Tensor, indices: Sequence[int], view: int = 0) -> Tensor:
        posterior = self.network.encode(images.to(self._device)).latent_dist
        if self._posterior == "mean":
            return posterior.mean
        if self._posterior == "moments":
            return torch.cat([posterior.mean, posterior.std], dim=1)
        shape = posterior.mean.shape[1:]
        noise = [torch.randn(shape, generator=generator(0, "posterior", index, view)) for index in indices]
        return posterior.mean + posterior.std * torch.stack(noise).to(self._device)

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.to(self._device, self._dtype)

        def images(part: range) -> Tensor:
            decoded: Tensor = self.network.decode(latents[part.start : part.stop]).sample
            return decoded.float().clamp(-1, 1)

        return torch.cat(self._fitting(images, range(len(latents))))


def _load_diffusers_autoencoder(folder: Path) -> AutoencoderKL:
    """A repository in diffusers' layout, from safetensors only."""
    from diffusers import AutoencoderKL

    try:
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: not a diffusers autoencoder: {error}") from None


def build_ldm_autoencoder(network: LdmAutoencoder, latent: int, device: str = "cpu") -> AutoencoderKL:
    """The network with ``latent`` channels, not initialised if ``device`` is meta."""
    from diffusers import AutoencoderKL

    levels = range(len(network.multipliers))
    down = ["AttnDownEncoderBlock2D" if k in network.attention else "DownEncoderBlock2D" for k in levels]
    up = ["AttnUpDecoderBlock2D" if k in network.attention else "UpDecoderBlock2D" for k in reversed(levels)]
    with torch.device(device):
        return AutoencoderKL(
            block_out_channels=[network.channels * factor for factor in network.multipliers],
            layers_per_block=network.blocks,
            down_block_types=down,
            up_block_types=up,
            latent_channels=latent,
        )


def ldm_name(name: str, levels: int) -> str:
    """LDM's name of a tensor of diffusers' AutoencoderKL; the decoder's levels count the other way."""
    for ours, theirs in NAMES.items():
        name = re.sub(rf"\b{re.escape(ours)}\b", theirs, name)
    return re.sub(r"\bup\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


def load_ldm_autoencoder(path: Path, network: LdmAutoencoder, latent: int) -> AutoencoderKL:
    """Weights of a training checkpoint (``state_dict``) or of a .safetensors file, as float32.

    Raises:
        ValueError: a file that cannot be read without running code from it; missing, unknown or
            misshapen tensors, by the names that they have in the file.
    """
    content = load_tensors(path)
    read = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(read, dict) or not all(isinstance(value, Tensor) for value in read.values()):
        raise ConfigError(f"{path}: has neither tensors by name nor a state_dict of them")
    tensors = {name: value for name, value in read.items() if name.startswith(KEPT)}
    vae = build_ldm_autoencoder(network, latent, "meta")
    state, faults = {}, []
    for name, own in vae.state_dict().items():
        theirs = ldm_name(name, len(network.multipliers))
        found = tensors.pop(theirs, None)
        # LDM's attention has 1x1 convolutions where diffusers has linear layers.
        shapes = [own.shape, (*own.shape, 1, 1)] if ".attn" in theirs and own.ndim == 2 else [own.shape]
        if found is None:
            faults.append(f"no {theirs}")
        elif found.shape not in shapes:
            faults.append(f"{theirs} is {list(found.shape)}, not {list(shapes[-1])}")
        else:
            state[name] = found.detach().to(torch.float32, copy=True).reshape(own.shape)
    faults += [f"unknown {name}" for name in tensors]
    if faults:
        raise ConfigError(f"{path}: does not fit tokenizer.network: {first_few(faults)}")
    vae.load_state_dict(state, assign=True)
    return vae
