"""The CLIP score: cosine of the embeddings of an image and its prompt (arXiv 2103.00020), not rescaled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...backbones.model_file import load_network
from ...common.files import reading
from ...config import ConfigError
from ...config.backbones import Backbone
from ...data.asset_files import read_record
from .geneval import Prompt
from .interface import Parts, Scorer, in_shape


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


def published_towers(record: Path, file: str, device: torch.device | str) -> Towers:
    """A CLIP as transformers' CLIPModel reads it, with the tokenizer and image processor beside it.

    Images are resized, bicubic, and cropped in their middle by Pillow: with torchvision the numbers would
    differ a little. Prompts are cut to the tokens that the network has places for.

    Args:
        record: of the asset, of which every file is verified.
        file: the weights, in the folder of the others.

    Raises:
        ConfigError: a file is missing, or not the one that was fetched, or one that the record does not name
            lies beside them.
        ValueError: they are no CLIP.
    """
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = read_record(record).verified_folder(file.rpartition("/")[0])
    with reading(folder, "a CLIP of transformers"):
        net = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    net.eval().requires_grad_(False).to(device)
    length = net.config.text_config.max_position_embeddings

    def images(given: Tensor) -> Tensor:
        pictures = list(given.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())
        pixels = processor(pictures, input_data_format="channels_last", return_tensors="pt").pixel_values
        found: Tensor = net.get_image_features(pixel_values=pixels.to(device)).pooler_output
        return found

    def texts(prompts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        found: Tensor = net.get_text_features(input_ids=tokens.input_ids.to(device)).pooler_output
        return found

    return Towers(images, texts)


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


def open_clip(parts: Parts) -> ClipScorer:
    """The scorer of a CLIP that was trained here, or that is published; raises as their towers do."""
    path, file = parts.paths["weights"], parts.entry.weights.file
    if file is None:
        towers = trained_towers(path, parts.backbone, parts.device)
    else:
        towers = published_towers(path, file, parts.device)
    return ClipScorer(parts.name, parts.sha256, parts.device, towers)
