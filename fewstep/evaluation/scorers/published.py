"""Published networks of scorers: their weights in classes of transformers, and images as they take them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones.model_file import check_weights
from ...common.cli import first_few
from ...common.files import reading

COMPUTED = r"\.position_ids$"
"""Tensors that older files have, and that a network makes itself."""


def renamed(tensors: Mapping[str, Tensor], rules: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors under other names.

    Args:
        rules: regular expression -> what is written in the place of what it finds, in turn.
    """
    found = {}
    for name, tensor in tensors.items():
        for what, replacement in rules.items():
            name = re.sub(what, replacement, name)
        found[name] = tensor
    return found


def load_published(
    network: Any,
    config: Any,
    tensors: Mapping[str, Tensor],
    path: Path,
    ignored: str = COMPUTED,
    unused: Sequence[str] = (),
) -> Any:
    """A network of transformers with published weights, in float32, frozen and in evaluation mode.

    Args:
        network: its class.
        tensors: all of its weights, by the class's names.
        path: of their file, for messages.
        ignored: regular expression of the names of tensors that it does not need.
        unused: first parts of the names of weights that nothing here reads; without a tensor they are zero.

    Raises:
        ValueError: naming weights that are missing, are of another shape, or are not the network's.
    """
    with torch.device("meta"):
        own = network(config).state_dict()
    needed = {name: tensor for name, tensor in tensors.items() if not re.search(ignored, name)}
    zeros = {name: torch.zeros(own[name].shape) for name in own if name.startswith(tuple(unused))}
    weights = zeros | needed
    check_weights(own, weights, str(path))
    net = network.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    return net.eval().requires_grad_(False)


def pixels(processor: Any, images: Tensor) -> Tensor:
    """Images of any size as a network takes them, float32 (n, 3, side, side), on their device.

    By Pillow, as torchvision's numbers differ a little: the shorter side is resized, bicubic, the middle is
    cropped, and the channels are normalised.

    Args:
        processor: transformers' CLIPImageProcessorPil.
        images: uint8 (n, C, H, W); grey ones, of one channel, have it in all three.

    Raises:
        ValueError: images of another number of channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, not {images.shape[1]}")
    pictures = list(images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())
    found: Tensor = processor(pictures, input_data_format="channels_last", return_tensors="pt").pixel_values
    return found.to(images.device)


def load_folder(network: Any, folder: Path, what: str, dtype: Any = torch.float32) -> Any:
    """A network of transformers from a folder in the hub's layout, frozen and in evaluation mode.

    Args:
        network: its class, which knows the names that weights had in earlier versions.
        folder: with `config.json` and weights as safetensors, in one file or in several.
        what: the network in words, with its article.
        dtype: "auto": the one that its weights are stored in.

    Raises:
        ValueError: naming the folder: it is damaged, of another network, or lacks weights.
    """
    with reading(folder, what):
        net, found = network.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{folder}: not {what}: weights are missing: {first_few(missing)}")
    return net.eval().requires_grad_(False)
