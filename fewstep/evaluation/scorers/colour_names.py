"""GenEval's names of objects' colours: zero-shot classification of what is inside a mask, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .geneval import Detection
from .towers import Towers

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
BACKGROUND = 0x99
"""Of all channels, in the place of what is outside the mask."""


class ColourNames:
    """Names the colours of objects (github.com/djghosh13/geneval, evaluate_images.py, written anew).

    Args:
        towers: of a CLIP.
    """

    def __init__(self, towers: Towers) -> None:
        self._towers = towers
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: Tensor, objects: Sequence[Detection]) -> list[str]:
        """The colour of each object.

        Args:
            image: uint8 (C, H, W) on the device.
            objects: of one class or of several, with masks.
        """
        found = []
        for one in objects:
            seen = normalize(self._towers.images(cut_out(image, one)[None]), dim=-1)[0]
            found.append(COLOURS[int((self._of_class(one.name) @ seen).argmax())])
        return found

    def _of_class(self, name: str) -> Tensor:
        """Directions of the colours of a class, (colours, D): the mean over the templates, of length 1."""
        if name not in self._known:
            texts = [template.format(colour, name) for colour in COLOURS for template in TEMPLATES]
            directions = normalize(self._towers.texts(texts), dim=-1)
            means = directions.unflatten(0, (len(COLOURS), len(TEMPLATES))).mean(1)
            self._known[name] = normalize(means, dim=-1)
        return self._known[name]


def cut_out(image: Tensor, one: Detection) -> Tensor:
    """The box of an object, uint8 (3, h, w): the image inside its mask, BACKGROUND outside."""
    assert one.mask is not None
    x0, y0, x1, y1 = map(int, one.box)
    shown = torch.where(one.mask, image.expand(3, -1, -1), BACKGROUND)
    return shown[:, y0:y1, x0:x1]
