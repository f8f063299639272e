"""VA-VAE (Yao et al., 2025) and other autoencoders in the layout of latent diffusion (LDM).

The architecture is that of diffusers' AutoencoderKL; only the names of the weights differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..common.cli import first_few
from ..common.tensor_files import load_tensors
from ..config import ConfigError
from ..config.settings import LdmAutoencoder

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


def build(network: LdmAutoencoder, latent: int, device: str = "cpu") -> AutoencoderKL:
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


def load(path: Path, network: LdmAutoencoder, latent: int) -> AutoencoderKL:
    """Weights of a training checkpoint (``state_dict``) or of a .safetensors file, as float32.

    Raises:
        ValueError: a file that cannot be read without running code from it; missing, unknown or
            misshapen tensors, by the names that they have in the file.
    """
    tensors = {name: value for name, value in _read(path).items() if name.startswith(KEPT)}
    vae = build(network, latent, "meta")
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


def _read(path: Path) -> dict[str, Tensor]:
    content = load_tensors(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{path}: has neither tensors by name nor a state_dict of them")
    return state
