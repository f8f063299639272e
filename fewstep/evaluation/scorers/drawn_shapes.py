"""Coloured shapes with their captions: on them a published scorer is tested before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .interface import SelfTest

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (250, 220, 40)}
SHAPES = ("circle", "square", "triangle")


def drawn_shapes(image: Sequence[int]) -> SelfTest:
    """Every shape in every colour in the middle of white images; the other caption differs in both.

    Args:
        image: (C, H, W); with one channel the colours are levels of grey.
    """
    colours = list(COLOURS)
    named = [(colour, shape) for colour in colours for shape in SHAPES]
    others = [(colour, shape) for colour in colours[1:] + colours[:1] for shape in SHAPES[1:] + SHAPES[:1]]
    own, wrong = ([{"prompt": f"a {colour} {shape}"} for colour, shape in each] for each in (named, others))
    return SelfTest(torch.stack([_draw(*one, image) for one in named]), own, wrong)


def _draw(colour: str, shape: str, image: Sequence[int]) -> Tensor:
    """uint8 (C, H, W)."""
    channels, height, width = image
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    inside = {
        "circle": x**2 + y**2 < 0.4,
        "square": (x.abs() < 0.6) & (y.abs() < 0.6),
        "triangle": (y < 0.6) & (y > 2 * x.abs() - 0.7),
    }[shape]
    paint = torch.tensor(COLOURS[colour], dtype=torch.float32)
    paint = paint if channels == 3 else paint.mean().expand(channels)
    return torch.where(inside, paint[:, None, None], 255.0).to(torch.uint8)
