"""GenEval's score, by a detector and GenEval's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor

from . import geneval
from .cell_detector import CALLED, CellDetector
from .geneval import Detection, Prompt
from .interface import Parts, Scorer, SelfTest
from .real_scenes import read_pictures

Detector = Callable[[Tensor], list[list[Detection]]]
"""The objects of each image, of uint8 images (n, C, H, W) on the device."""
RULES = "GenEval (arXiv 2310.11513): share of correct images, mean over tasks"
RIGHT_OF_TASK = 0.5
"""Share of the self-test's pictures of every task that must be right.

A classifier that was trained with smoothed labels is never certain enough to count.
"""


class GenEvalScorer(Scorer):
    """1 for an image that shows what its prompt asks for, else 0.

    Args:
        detector: finds objects with class, box, score and colour.
        called: the detector in words.
    """

    def __init__(
        self, name: str, sha256: str, device: torch.device | str, detector: Detector, called: str
    ) -> None:
        super().__init__(name, sha256, device)
        self.computes = f"{RULES}; objects found by {called}"
        self._detector = detector

    def detections(self, images: Tensor) -> list[list[Detection]]:
        """The objects of each image."""
        return list(chain.from_iterable(self._batches(self._detector, images)))

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        found = zip(prompts, self.detections(images), strict=True)
        return torch.tensor([float(not geneval.faults(prompt, one)) for prompt, one in found])

    def overall(self, values: Sequence[float], prompts: Sequence[Prompt]) -> dict[str, float]:
        return {"": geneval.overall(values, prompts), **geneval.score_by_task(values, prompts)}

    def faults(self, test: SelfTest) -> str:
        if not any(self.detections(test.images)):
            return "its detector finds nothing on the self-test's pictures"
        by_task = geneval.score_by_task(self(test.images, test.own).tolist(), test.own)
        for tag, accuracy in by_task.items():
            if accuracy < RIGHT_OF_TASK:
                return f"its self-test: of the pictures of {tag} only {accuracy:.0%} are right"
        return super().faults(test)


def open_cells(parts: Parts) -> GenEvalScorer:
    """The scorer by a classifier of cells, which the asset of the prompts names.

    Raises:
        ConfigError, ValueError: as `read_pictures` and `CellDetector`.
    """
    path, checksum = parts.weights
    detector = CellDetector(path, parts.backbone, read_pictures(parts.prompts), parts.device)
    return GenEvalScorer(parts.name, checksum, parts.device, detector, CALLED)
