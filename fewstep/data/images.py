"""From image files to tensors."""

from __future__ import annotations

from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def adm_crop(image: Image.Image, size: int) -> Image.Image:
    """Centre crop of side ``size`` as in ADM (Dhariwal and Nichol, 2021) and all that followed it.

    The image is halved with a box filter while its short side is at least twice ``size``, then
    resized bicubically so that the short side is ``size``.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    image = image.resize(shape, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_image(stream: IO[bytes], channels: int, size: int, crop: str) -> Tensor:
    """One image as float32 (channels, size, size) in [-1, 1]: x / 127.5 - 1.

    Raises:
        ValueError: not an image, or of another size and ``crop`` is none.
    """
    with Image.open(stream) as raw:
        image = raw.convert("RGB" if channels == 3 else "L")
    if crop == "adm":
        image = adm_crop(image, size)
    elif image.size != (size, size):
        raise ValueError(f"is {image.width}x{image.height}, not {size}x{size}, and crop is none")
    pixels = torch.from_numpy(np.array(image)).reshape(size, size, channels)
    return pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)
