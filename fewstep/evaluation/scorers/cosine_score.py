"""Scores that are cosines of the embeddings of an image and its prompt: CLIP's, PickScore and HPS v2.1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...backbones.import_weights import read_weights
from .geneval import Prompt
from .interface import Parts, Scorer
from .open_clip_weights import from_open_clip
from .towers import Towers, published_towers, trained_towers

COSINE = "cosine of the {} embeddings of image and prompt"
HPS_SCALE = 100.0
"""As its authors print it (hpsv2/evaluation.py), whatever the scale is that the network learned."""


class CosineScorer(Scorer):
    """Cosine of an image and its prompt.

    Args:
        computes: in words.
        scale: what the cosine is multiplied by.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        device: torch.device | str,
        towers: Towers,
        computes: str,
        scale: float = 1.0,
    ) -> None:
        super().__init__(name, sha256, device)
        self.computes = computes
        self._towers = towers
        self._scale = scale

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        texts = [prompt["prompt"] for prompt in prompts]
        different = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(different)}
        of_images = torch.cat(self._batches(self._towers.images, images))
        of_texts = self._towers.texts(different)[[place[text] for text in texts]]
        return self._scale * cosine_similarity(of_images, of_texts).float().cpu()


def open_clip(parts: Parts) -> CosineScorer:
    """The CLIP score (arXiv 2103.00020), not rescaled, by a CLIP that was trained here or is published.

    Raises:
        ConfigError, ValueError: as `trained_towers`, `published_towers`, and `Parts.with_folder`.
    """
    if parts.entry.weights.file is None:
        path, checksum = parts.file("weights")
        towers = trained_towers(path, parts.backbone, parts.device)
    else:
        path, checksum = parts.with_folder("weights")
        folder = path.parent
        towers = published_towers(read_weights(path)[0], path, folder, folder, parts.device)
    return CosineScorer(parts.name, checksum, parts.device, towers, COSINE.format("CLIP"))


def open_pickscore(parts: Parts) -> CosineScorer:
    """PickScore v1 (arXiv 2305.01569): the cosine by its CLIP, times the scale that it learned, about 100.

    Raises:
        ConfigError, ValueError: as for `open_clip`.
    """
    path, checksum = parts.with_folder("weights")
    texts = parts.with_folder("tokenizer")[0].parent
    towers = published_towers(read_weights(path)[0], path, path.parent, texts, parts.device)
    computes = f"{towers.scale:.6g} x {COSINE.format('PickScore')}"
    return CosineScorer(parts.name, checksum, parts.device, towers, computes, towers.scale)


def open_hps(parts: Parts) -> CosineScorer:
    """HPS v2.1 (arXiv 2306.09341): 100 times the cosine by its CLIP, of the sizes of its tokenizer's.

    Its authors fit the longer side of an image into the network's square; of square images that is the same.

    Raises:
        ConfigError, ValueError: as for `open_clip`.
    """
    path, checksum = parts.file("weights")
    tensors = from_open_clip(read_weights(path, "state_dict")[0])
    texts = parts.with_folder("tokenizer")[0].parent
    towers = published_towers(tensors, path, texts, texts, parts.device)
    computes = f"{HPS_SCALE:g} x {COSINE.format('HPS v2.1')}"
    return CosineScorer(parts.name, checksum, parts.device, towers, computes, HPS_SCALE)
