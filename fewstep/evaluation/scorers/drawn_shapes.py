"""Coloured shapes with their captions: on them a published scorer is tested before it is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.scenes import OBJECTS, drawing
from .geneval import Detection
from .interface import SelfTest, box_of

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220), "yellow": (250, 220, 40)}
SHAPES = ("circle", "square", "triangle")
SIDE = 256
"""Pixels along a side of a drawn object's picture, and of a coloured shape's."""
UNKNOWN = ("frog", "tree", "house")
"""Drawn objects that are none of COCO's."""


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


def coloured_shapes() -> list[tuple[Tensor, Detection]]:
    """The same shapes, uint8 (3, SIDE, SIDE), each with its mask, its box and its colour."""
    found = []
    for colour in COLOURS:
        for shape in SHAPES:
            image = _draw(colour, shape, (3, SIDE, SIDE))
            mask = (image < 255).any(0)
            found.append((image, Detection(shape, box_of(mask), 1.0, colour, mask)))
    return found


def drawn_objects() -> SelfTest:
    """Drawings of COCO's objects, one on each white image (3, SIDE, SIDE), with prompts of GenEval.

    Raises:
        ValueError: the package of the drawings is not there.
    """
    names = [name for name in OBJECTS if name not in UNKNOWN]
    half = len(names) // 2
    own, others = (
        [{"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": name} for name in each]
        for each in (names, names[half:] + names[:half])
    )
    images = [torch.from_numpy(drawing(OBJECTS[name], SIDE)).permute(2, 0, 1) for name in names]
    return SelfTest(torch.stack(images), own, others)


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
