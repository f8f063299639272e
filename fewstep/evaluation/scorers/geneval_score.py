"""GenEval's score, by a detector and GenEval's rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from ...backbones.import_weights import read_weights
from . import coco_detector, geneval
from .cell_detector import CALLED, CellDetector
from .colour_names import ColourNames
from .drawn_shapes import coloured_shapes, drawn_objects
from .geneval import Detection, Prompt
from .interface import RIGHT, ROWS, Parts, Scorer, SelfTest
from .real_scenes import read_pictures
from .towers import published_towers

Detector = Callable[[Tensor], list[list[Detection]]]
"""The objects of each image, of uint8 images (n, C, H, W) on the device."""
RULES = "GenEval (arXiv 2310.11513): share of correct images, mean over tasks"
RIGHT_OF_TASK = 0.5
"""Share of the self-test's pictures of every task that must be right.

A classifier that was trained with smoothed labels is never certain enough to count.
"""
NOTHING_FOUND = "its detector finds nothing on the self-test's pictures"
RIGHT_OF_DRAWN = 1 / 3
"""Share of drawn objects that must be found by a detector that has learned from photographs."""


class GenEvalScorer(Scorer):
    """1 for an image that shows what its prompt asks for, else 0.

    Args:
        detector: finds objects with class, box, score and colour.
        called: the detector in words.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        device: torch.device | str,
        detector: Detector,
        called: str,
        rows: int = ROWS,
    ) -> None:
        super().__init__(name, sha256, device, rows)
        self.computes = f"{RULES}; objects found by {called}"
        self._detector = detector

    def detections(self, images: Tensor) -> list[list[Detection]]:
        """The objects of each image."""
        return list(chain.from_iterable(self._batches(self._detector, images)))

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor(list(chain.from_iterable(self._batches(self._judged, images, prompts))))

    def _judged(self, images: Tensor, prompts: Sequence[Prompt]) -> list[float]:
        found = self._found(images, prompts)
        return [float(not geneval.faults(prompt, one)) for prompt, one in zip(prompts, found, strict=True)]

    def _found(self, images: Tensor, prompts: Sequence[Prompt]) -> list[list[Detection]]:
        """The objects of each image, those whose colours the prompt asks for with their colours."""
        return self._detector(images)

    def overall(self, values: Sequence[float], prompts: Sequence[Prompt]) -> dict[str, float]:
        return {"": geneval.overall(values, prompts), **geneval.score_by_task(values, prompts)}

    def faults(self, test: SelfTest) -> str:
        if not any(self.detections(test.images)):
            return NOTHING_FOUND
        by_task = geneval.score_by_task(self(test.images, test.own).tolist(), test.own)
        for tag, accuracy in by_task.items():
            if accuracy < RIGHT_OF_TASK:
                return f"its self-test: of the pictures of {tag} only {accuracy:.0%} are right"
        return super().faults(test)


class HfGenEvalScorer(GenEvalScorer):
    """The same by a detector of COCO's objects, which finds masks, and a CLIP that names colours.

    Args:
        colours: names the colours of objects with masks.
        colours_sha256: of its weights.
    """

    differs = "objects are found by transformers' Mask2Former, not by mmdetection's"

    def __init__(
        self,
        name: str,
        sha256: str,
        device: torch.device | str,
        detector: Detector,
        colours: ColourNames,
        colours_sha256: str,
    ) -> None:
        super().__init__(name, sha256, device, detector, coco_detector.CALLED, coco_detector.ROWS)
        self._colours = colours
        self._colours_sha256 = colours_sha256

    @property
    def card(self) -> dict[str, str]:
        return {**super().card, "colours_sha256": self._colours_sha256}

    def _found(self, images: Tensor, prompts: Sequence[Prompt]) -> list[list[Detection]]:
        each = zip(images, prompts, super()._found(images, prompts), strict=True)
        return [self._coloured(*one) for one in each]

    def _coloured(self, image: Tensor, prompt: Prompt, detections: list[Detection]) -> list[Detection]:
        found = geneval.objects(prompt["tag"], detections)
        groups = [group for group in prompt["include"] if group.get("color") is not None]
        asked = [one for group in groups for one in found[group["class"]][: group["count"]]]
        named = dict(zip(map(id, asked), self._colours(image, asked), strict=True))
        return [replace(one, colour=named.get(id(one)), mask=None) for one in detections]

    def faults(self, test: SelfTest) -> str:
        """Of drawings of COCO's objects, whatever the test's pictures are, and of coloured shapes."""
        drawn = drawn_objects()
        found = self.detections(drawn.images)
        if not any(found):
            return NOTHING_FOUND
        own, others = (
            sum(not geneval.faults(prompt, one) for prompt, one in zip(prompts, found, strict=True))
            for prompts in (drawn.own, drawn.others)
        )
        if own < RIGHT_OF_DRAWN * len(drawn.own) or others >= own:
            return (
                f"its self-test: of {len(drawn.own)} drawn objects {own} are found, and {others} "
                "that are not there"
            )
        shapes = coloured_shapes()
        right = sum(self._colours(image.to(self.device), [one])[0] == one.colour for image, one in shapes)
        if right < RIGHT * len(shapes):
            return (
                f"its self-test: of {len(shapes)} coloured shapes the colours of only {right} are named right"
            )
        return ""


def open_cells(parts: Parts) -> GenEvalScorer:
    """The scorer by a classifier of cells, which the asset of the prompts names.

    Raises:
        ConfigError, ValueError: as `read_pictures` and `CellDetector`.
    """
    path, checksum = parts.file("weights")
    detector = CellDetector(path, parts.backbone, read_pictures(parts.prompts), parts.device)
    return GenEvalScorer(parts.name, checksum, parts.device, detector, CALLED)


def open_mask2former(parts: Parts) -> HfGenEvalScorer:
    """The scorer by a published Mask2Former, and by a published CLIP for colours.

    Raises:
        ConfigError: a file is missing, or not the one that was fetched.
        ValueError: it is of another network.
    """
    (weights, checksum), (path, colours_sha256) = map(parts.with_folder, ("weights", "colours"))
    clip = path.parent
    colours = ColourNames(published_towers(read_weights(path)[0], path, clip, clip, parts.device))
    detector = coco_detector.CocoDetector(weights.parent, parts.device)
    return HfGenEvalScorer(parts.name, checksum, parts.device, detector, colours, colours_sha256)
