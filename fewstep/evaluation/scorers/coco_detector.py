"""A detector of COCO's objects for GenEval: Mask2Former (arXiv 2112.01527) by transformers.

GenEval's authors use mmdetection's Mask2Former with a Swin-S backbone. Network and classes here are the same,
the weights are those of Mask2Former's authors: scores differ a little. Images are prepared, and objects taken
from the network's output, as mmdetection does both. transformers' own post-processing gives instances in
masks of 384 x 384 pixels whatever the image is (known to its authors), and its processor squashes
images to them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .geneval import SCORE, Detection
from .interface import box_of
from .published import load_folder

CALLED = "transformers' Mask2Former (Swin-S, COCO)"
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse"),
    *("sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie"),
    *("suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon"),
    *("bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut"),
    *("cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop"),
    *("computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster"),
    *("sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""COCO's 80 classes in their order, as GenEval spells them."""
SHORTEST, LONGEST = 800, 1333
"""Pixels along the sides of an image that the network is shown: the shorter one, and at most the longer."""
DIVISOR = 32
"""Sides of what the network is shown are filled up to a multiple of it."""
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of the channels of ImageNet's images, in bytes."""
MOST = 100
"""Pairs of query and class that are looked at, the highest scores first."""
ROWS = 16
"""Most images at once."""


class CocoDetector:
    """Finds the objects of images, with their masks.

    Args:
        folder: `config.json` and weights, as the hub has them.

    Raises:
        ValueError: naming the folder: it is damaged, lacks weights, or is of other classes.
    """

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        from transformers import Mask2FormerForUniversalSegmentation

        net = load_folder(Mask2FormerForUniversalSegmentation, folder, "a Mask2Former of transformers")
        if net.config.num_labels != len(CLASSES):
            raise ValueError(
                f"{folder}/config.json: id2label: {net.config.num_labels} classes, COCO has {len(CLASSES)}"
            )
        self._net = net.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """The objects of each image, of uint8 images (n, C, H, W) on the device."""
        shown, inside = prepared(images)
        output = self._net(pixel_values=shown)
        both = zip(output.class_queries_logits.float(), output.masks_queries_logits.float(), strict=True)
        padded, size = (shown.shape[2], shown.shape[3]), (images.shape[2], images.shape[3])
        return [instances(logits, masks, padded, inside, size) for logits, masks in both]


def prepared(images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """uint8 images (n, C, H, W) as the network takes them, float32 (n, 3, h, w), and their own h and w in it.

    Bilinear, SHORTEST along the shorter side unless the longer one would be above LONGEST; zeros at the right
    and below.
    """
    height, width = images.shape[2:]
    scale = min(SHORTEST / min(height, width), LONGEST / max(height, width))
    inside = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = images.expand(-1, 3, -1, -1).float()
    pixels = interpolate(pixels, size=inside, mode="bilinear", align_corners=False).round()
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    down, right = (-side % DIVISOR for side in inside)
    return pad((pixels - mean) / std, (0, right, 0, down)), inside


def instances(
    logits: Tensor, masks: Tensor, padded: tuple[int, int], inside: tuple[int, int], size: tuple[int, int]
) -> list[Detection]:
    """The objects that the network's output for an image says, those above GenEval's lowest score.

    An object's score is its class's probability times the mean probability of the pixels of its mask, which
    are those of more than one half. Its box is where the mask is.

    Args:
        logits: of the classes of each query, the last one "no object", (queries, classes + 1).
        masks: logits of the pixels of each query, (queries, h, w).
        padded: height and width of what the network was shown.
        inside: of the image in it.
        size: of the image itself.
    """
    probabilities = logits.softmax(-1)[:, :-1]
    scores, places = probabilities.flatten().topk(min(MOST, probabilities.numel()))
    places = places[scores > SCORE]  # no object's score is above its class's probability
    scores = scores[: len(places)]
    if not len(places):
        return []
    queries, labels = places // probabilities.shape[1], places % probabilities.shape[1]
    large = interpolate(masks[queries][None], size=padded, mode="bilinear", align_corners=False)
    large = large[:, :, : inside[0], : inside[1]]
    large = interpolate(large, size=size, mode="bilinear", align_corners=False)[0]
    there = large > 0
    counts = there.sum((1, 2))
    scores = scores * (large.sigmoid() * there).sum((1, 2)) / (counts + 1e-6)
    found = []
    for mask, label, score in zip(there, labels.tolist(), scores.tolist(), strict=True):
        if score > SCORE:
            found.append(Detection(CLASSES[label], box_of(mask), score, mask=mask))
    return found
