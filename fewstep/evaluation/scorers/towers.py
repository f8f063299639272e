"""The two towers of networks that place images and prompts in one space: those of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...backbones.model_file import load_network
from ...common.files import reading
from ...config import ConfigError
from ...config.backbones import Backbone
from .interface import in_shape
from .published import load_published, pixels


@dataclass(frozen=True)
class Towers:
    """Both, on a device."""

    images: Callable[[Tensor], Tensor]
    """uint8 (n, C, H, W) on the device to embeddings (n, D)."""
    texts: Callable[[Sequence[str]], Tensor]
    """Prompts, of which too long ones are cut, to embeddings (n, D)."""
    scale: float = 1.0
    """What the network multiplies its cosines by."""


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


def published_towers(
    tensors: Mapping[str, Tensor], weights: Path, config: Path, texts: Path, device: torch.device | str
) -> Towers:
    """A CLIP as transformers' CLIPModel reads it. Prompts are cut to the tokens that it has places for.

    Args:
        tensors: its weights, by the names of CLIPModel.
        weights: their file, for messages.
        config: folder of its `config.json`.
        texts: folder of its tokenizer and its image processor.

    Raises:
        ValueError: naming the file: it is damaged, or the weights are not those of `config.json`.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    with reading(config, "a CLIP of transformers"):
        sizes = CLIPConfig.from_pretrained(config, local_files_only=True)
    with reading(texts, "the tokenizer and image processor of a CLIP"):
        tokenizer = CLIPTokenizer.from_pretrained(texts, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(texts, local_files_only=True)
    net = load_published(CLIPModel, sizes, tensors, weights).to(device)
    length = sizes.text_config.max_position_embeddings

    def embed_images(images: Tensor) -> Tensor:
        found: Tensor = net.get_image_features(pixel_values=pixels(processor, images)).pooler_output
        return found

    def embed_texts(prompts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        found: Tensor = net.get_text_features(input_ids=tokens.input_ids.to(device)).pooler_output
        return found

    return Towers(embed_images, embed_texts, float(net.logit_scale.exp()))
