"""Laplacian pyramids of images, and how a network is given them.

x_S = x - up(down(x)) and so on to the coarsest scale, x_1 = down^(S - 1)(x), where down halves the sides and
up doubles them, both bilinear (arXiv 2506.19839, section 3; its release). The parts add up to the image.

All scales of an image lie side by side in one tensor (B, C, P), the coarsest first, where P counts the pixels
of all scales: a pyramid has more numbers than the image, and independent noise in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def sides(height: int, width: int, scales: int) -> list[tuple[int, int]]:
    """Height and width of each scale, the coarsest first."""
    return [(height >> level, width >> level) for level in reversed(range(scales))]


def up(x: Tensor) -> Tensor:
    """Twice the sides, bilinear."""
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def decompose(x: Tensor, scales: int) -> list[Tensor]:
    """The pyramid of images (B, C, H, W): a tensor (B, C, h, w) for each scale, the coarsest first."""
    parts = []
    for _ in range(scales - 1):
        coarse = interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
        parts.append(x - up(coarse))
        x = coarse
    return [x, *reversed(parts)]


def compose(parts: Sequence[Tensor]) -> Tensor:
    """The images (B, C, H, W) of a pyramid."""
    x, *finer = parts
    for part in finer:
        x = up(x) + part
    return x


def pack(parts: Sequence[Tensor]) -> Tensor:
    """All scales, (B, C, h, w) each, as one tensor (B, C, P)."""
    return torch.cat([part.flatten(2) for part in parts], dim=2)


def unpack(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The scales (B, C, h, w) in a tensor (B, C, P), for their heights and widths."""
    parts = x.split([prod(shape) for shape in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]
