"""Features of DINOv2 (arXiv 2304.07193) as dgm-eval takes them (arXiv 2306.04675), for the distance FDD.

Images go to 224 x 224 pixels by Pillow's bicubic filter, as bytes, are normalised by ImageNet's moments, and
their feature is the class token after the last norm: 1,024 numbers of ViT-L/14.

Deviations from dgm-eval: transformers' network in place of torch.hub's; the two interpolate the table of
positions, which was trained for 518 pixels, by slightly other offsets.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.cli import first_few
from ..config import ConfigError
from ..core.precision import exact_convolutions

SIDE = 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoFeatures:
    """Class tokens by the network in a folder of transformers' layout, from safetensors only.

    Raises:
        ConfigError: transformers is not installed, or the folder holds no DINOv2.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            from transformers import Dinov2Model
        except ImportError:
            raise ConfigError("extractor dinov2 needs transformers; pip install -e '.[t2i]'") from None
        exact_convolutions()
        try:
            net, found = Dinov2Model.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder}: not a DINOv2 of transformers: {error}") from None
        if net.config.model_type != "dinov2":
            raise ConfigError(f"{folder}: config.json: model_type {net.config.model_type}, not dinov2")
        if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
            raise ConfigError(f"{folder}: not a DINOv2 of transformers: it lacks {first_few(missing)}")
        self._net = net.eval().requires_grad_(False).float().to(device)

    def __call__(self, images: Tensor) -> tuple[Tensor]:
        """Features float32 (n, width) of uint8 images (n, 3, H, W).

        Raises:
            ConfigError: images of another number of channels.
        """
        if images.shape[1] != 3:
            raise ConfigError(f"extractor dinov2: images have {images.shape[1]} channels, not 3")
        pixels = resized(images.cpu()).to(images.device).float() / 255
        mean, deviation = (
            torch.tensor(each, device=images.device).view(3, 1, 1) for each in (MEAN, DEVIATION)
        )
        return (self._net(pixel_values=(pixels - mean) / deviation).pooler_output,)


def resized(images: Tensor) -> Tensor:
    """Images uint8 (n, 3, H, W) on the host as (n, 3, SIDE, SIDE), by Pillow's bicubic filter."""
    rows = (Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy())
    small = [np.asarray(row.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for row in rows]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
