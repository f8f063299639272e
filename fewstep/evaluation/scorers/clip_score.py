"""The CLIP score: cosine of the embeddings of an image and its prompt (arXiv 2103.00020), not rescaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...backbones.model_file import load_network
from ...config import ConfigError
from ...config.backbones import Backbone
from .interface import Prompt, Scorer, in_shape


@dataclass(frozen=True)
class Towers:
    """Both halves of a CLIP, on a device."""

    images: Callable[[Tensor], Tensor]
    """uint8 (n, C, H, W) on the device to embeddings (n, D)."""
    texts: Callable[[Sequence[str]], Tensor]
    """Prompts, of which too long ones are cut, to embeddings (n, D)."""


def trained_towers(weights: Path, backbone: Backbone | None, device: torch.device | str) -> Towers:
    """A CLIP that was trained here; words that its training did not have are its unknown word.

    Args:
        weights: its model file, whose card holds the vocabulary.

    Raises:
        ConfigError: the card holds none.
        ValueError: the file is of another network than ``backbone``.
    """
    from ...data.text_encoders import word_numbers, word_tokenizer  # loads transformers

    net, card = load_network(weights, backbone)
    words = card.get("text", {}).get("vocabulary")
    if not words:
        raise ConfigError(f"{weights}: text.vocabulary is missing in its card; train the CLIP again")
    net.to(device)
    tokenizer = word_tokenizer(words, card["backbone"]["length"])
    shape = card["backbone"]["shape"]
    return Towers(
        images=lambda images: net.embed_images(in_shape(images, shape, "the CLIP")),
        texts=lambda prompts: net.embed_tokens(word_numbers(tokenizer, prompts).to(device)),
    )


class ClipScorer(Scorer):
    """Cosine of an image and its prompt."""

    computes = "cosine of the CLIP embeddings of image and prompt"

    def __init__(self, name: str, sha256: str, device: torch.device | str, towers: Towers) -> None:
        super().__init__(name, sha256, device)
        self._towers = towers

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        texts = [prompt["prompt"] for prompt in prompts]
        different = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(different)}
        of_images = torch.cat(self._batches(self._towers.images, images))
        of_texts = self._towers.texts(different)[[place[text] for text in texts]]
        return cosine_similarity(of_images, of_texts).float().cpu()
