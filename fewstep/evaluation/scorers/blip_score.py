"""Scores by BLIP's large network: its own cosine, and ImageReward.

Both are those of ImageReward's release (github.com/THUDM/ImageReward, Apache-2.0), computed by the BLIP of
transformers: its image encoder, and its text encoder, alone or looking at the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...backbones.import_weights import read_weights
from ...backbones.model_file import load_compatible
from ...common.files import reading
from .cosine_score import COSINE, CosineScorer
from .geneval import Prompt
from .interface import Parts, Scorer
from .published import COMPUTED, load_published, pixels, renamed
from .towers import Towers

RULES = {
    r"^blip\.": "",
    r"^visual_encoder\.cls_token$": "vision_model.embeddings.class_embedding",
    r"^visual_encoder\.pos_embed$": "vision_model.embeddings.position_embedding",
    r"^visual_encoder\.patch_embed\.proj\.": "vision_model.embeddings.patch_embedding.",
    r"^visual_encoder\.norm\.": "vision_model.post_layernorm.",
    r"^visual_encoder\.blocks\.": "vision_model.encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.qkv\.": ".self_attn.qkv.",
    r"\.attn\.proj\.": ".self_attn.projection.",
}
"""BLIP's names -> those of transformers; the others are the same."""
UNUSED = "itm_head."
IGNORED = "|".join(
    [
        COMPUTED,
        r"^(visual_encoder|vision_proj|text_encoder|text_proj)_m\.",
        r"^(image_queue|text_queue|queue_ptr|temp)$",
        r"^text_decoder\.",
        rf"^{UNUSED}",
    ]
)
"""What pretraining had beside both encoders: their averages, queues of embeddings, decoder, classifier."""

LARGE: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "layer_norm_eps": 1e-6,  # timm's; transformers' BLIP has 1e-5
    },
    "text_config": {
        "vocab_size": 30524,  # BERT's, and two that no prompt has
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "image_text_hidden_size": 256,
}
TOKENS = 35
"""Of a prompt, its start and end included; more are cut."""
REWARD_WIDTHS = (1024, 128, 64, 16, 1)
REWARD_PLACES = (0, 2, 4, 6, 7)
"""Numbers of the linear layers in ImageReward's head; between them is dropout in training only."""
REWARD_MEAN, REWARD_DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of rewards, over its authors' prompts and images (ImageReward.py)."""


class Blip(NamedTuple):
    """BLIP's network with what turns images and prompts into its inputs."""

    net: Any
    images: Callable[[Tensor], Tensor]
    """uint8 (n, C, H, W) on the device to states (n, patches + 1, D), the first of the whole image."""
    tokens: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
    """Prompts to token numbers and mask, both (n, TOKENS), int64."""

    def texts(self, tokens: Tensor, mask: Tensor, images: Tensor | None = None) -> Tensor:
        """States (n, D) of whole prompts, alone or with the states of the images that they look at."""
        device = self.net.device
        seen = None if images is None else torch.ones(images.shape[:2], dtype=torch.long, device=device)
        found: Tensor = self.net.text_encoder(
            tokens.to(device),
            attention_mask=mask.to(device),
            encoder_hidden_states=images,
            encoder_attention_mask=seen,
        ).last_hidden_state
        return found[:, 0]


def load_blip(tensors: dict[str, Tensor], path: Path, vocabulary: Path, device: torch.device | str) -> Blip:
    """BLIP-L with published weights.

    Args:
        tensors: its weights, by BLIP's names.
        path: of their file, for messages.
        vocabulary: BERT's `vocab.txt`.

    Raises:
        ValueError: naming the file: weights of another network, or no vocabulary.
    """
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPImageProcessorPil

    config = BlipConfig(**LARGE)
    net = load_published(
        BlipForImageTextRetrieval, config, renamed(tensors, RULES), path, ignored=IGNORED, unused=[UNUSED]
    ).to(device)
    with reading(vocabulary, "the vocabulary of BERT"):
        tokenizer = BertTokenizer(vocab=str(vocabulary))
    side = config.vision_config.image_size
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=side)

    def images(given: Tensor) -> Tensor:
        found: Tensor = net.vision_model(pixel_values=pixels(processor, given)).last_hidden_state
        return found

    def tokens(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        return found.input_ids, found.attention_mask

    return Blip(net, images, tokens)


def open_blip(parts: Parts) -> CosineScorer:
    """The cosine of BLIP's contrast of images and texts (arXiv 2201.12086), by its pretrained network.

    Raises:
        ConfigError, ValueError: naming the file: it is missing, not the one that was fetched, or of another
            network.
    """
    path, checksum = parts.file("weights")
    blip = load_blip(read_weights(path, "model")[0], path, parts.file("tokenizer")[0], parts.device)
    towers = Towers(
        images=lambda images: blip.net.vision_proj(blip.images(images)[:, 0]),
        texts=lambda prompts: blip.net.text_proj(blip.texts(*blip.tokens(prompts))),
    )
    return CosineScorer(parts.name, checksum, parts.device, towers, COSINE.format("BLIP"))


class ImageRewardScorer(Scorer):
    """ImageReward (arXiv 2304.05977): what a head makes of a prompt that looked at its image, standardised.

    Args:
        head: states (n, D) to rewards (n, 1).
    """

    computes = "ImageReward v1.0, standardised"

    def __init__(
        self, name: str, sha256: str, device: torch.device | str, blip: Blip, head: nn.Module
    ) -> None:
        super().__init__(name, sha256, device)
        self._blip = blip
        self._head = head

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        tokens, mask = self._blip.tokens([prompt["prompt"] for prompt in prompts])
        rewards = torch.cat(self._batches(self._rewards, images, tokens, mask))
        return ((rewards - REWARD_MEAN) / REWARD_DEVIATION).float().cpu()

    def _rewards(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self._head(self._blip.texts(tokens, mask, self._blip.images(images)))
        return found[:, 0]


def open_image_reward(parts: Parts) -> ImageRewardScorer:
    """ImageReward by its published weights.

    Raises:
        ConfigError, ValueError: as for `open_blip`.
    """
    path, checksum = parts.file("weights")
    tensors = read_weights(path)[0]
    of_head = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mlp.")}
    blip = load_blip(tensors, path, parts.file("tokenizer")[0], parts.device)
    head = reward_head(blip.net.config.text_config.hidden_size)
    load_compatible(nn.ModuleDict({"mlp": nn.ModuleDict({"layers": head})}), of_head, str(path))
    head.eval().requires_grad_(False).to(parts.device)
    return ImageRewardScorer(parts.name, checksum, parts.device, blip, head)


def reward_head(width: int) -> nn.Sequential:
    """Linear layers without any function between them, numbered as in ImageReward's file."""
    layers: list[nn.Module] = [nn.Identity() for _ in range(REWARD_PLACES[-1] + 1)]
    for place, (inputs, outputs) in zip(REWARD_PLACES, pairwise((width, *REWARD_WIDTHS)), strict=True):
        layers[place] = nn.Linear(inputs, outputs)
    return nn.Sequential(*layers)
