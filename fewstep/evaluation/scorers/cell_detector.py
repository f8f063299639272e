"""The miniature's detector: a classifier of single cells finds the objects of a scene, and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...backbones.model_file import load_network
from ...config import ConfigError
from ...config.backbones import Backbone, ConvClassifier
from .geneval import Detection
from .interface import in_shape

Picture = tuple[str, str | None] | None
"""Object and colour of a class of cells; None: an empty cell."""


CALLED = "a classifier of the cells of scenes, trained here"


class CellDetector:
    """Classifies each cell of a scene's grid; an object's box is its cell, its score the probability.

    Args:
        weights: model file of the classifier.
        pictures: what each of its classes shows.

    Raises:
        ConfigError: another number of classes than pictures.
        ValueError: the weights are of another network than ``backbone``.
    """

    def __init__(
        self,
        weights: Path,
        backbone: Backbone | None,
        pictures: Sequence[Picture],
        device: torch.device | str,
    ) -> None:
        if not isinstance(backbone, ConvClassifier) or backbone.classes != len(pictures):
            found = getattr(backbone, "classes", "no")
            raise ConfigError(f"{weights}: a classifier of {found} classes, but cells show {len(pictures)}")
        net, _ = load_network(weights, backbone)
        self._net = net.to(device)
        self._shape = backbone.shape
        self._pictures = pictures

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """The objects of each image, row by row, of uint8 images (n, C, H, W) on the device.

        Raises:
            ValueError: images that are no grid of cells.
        """
        _, height, width = self._shape
        rows, columns = (side // cell for side, cell in zip(images.shape[2:], (height, width), strict=True))
        whole = [self._shape[0], rows * height, columns * width]
        grid = in_shape(images, whole, "the detector of cells")
        cells = grid.unflatten(2, (rows, height)).unflatten(4, (columns, width))  # n, C, rows, h, columns, w
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        scores, classes = self._net(cells).softmax(1).max(1)
        boxes = [
            (float(x * width), float(y * height), float((x + 1) * width), float((y + 1) * height))
            for y in range(rows)
            for x in range(columns)
        ]
        found: list[list[Detection]] = [[] for _ in range(len(images))]
        for index, (label, score) in enumerate(zip(classes.tolist(), scores.tolist(), strict=True)):
            picture = self._pictures[label]
            image, cell = divmod(index, len(boxes))
            if picture is not None:
                found[image].append(Detection(picture[0], boxes[cell], score, picture[1]))
        return found
