"""A small CLIP (arXiv 2103.00020): transformers' CLIPModel on images in [-1, 1] and numbers of words."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection

from ..config import backbones as specs

PAD, UNKNOWN, START, END = range(4)
"""Numbers of the tokens that are no words."""
LARGEST_SCALE = 100.0
"""Of the cosines; the paper's section 2.5."""
DEVIATION = 0.02
"""Of initial embeddings of words, positions and patches: OpenAI's, and not all of transformers' defaults."""


class Clip(nn.Module):
    """Two towers with a common space: ``net(images, y)`` -> (embedded images, embedded captions, scale).

    Initial weights come from torch's generator. ``text`` is a store of kind words (data/text_store.py), which
    turns y into token numbers; it is not part of the state dict.
    """

    def __init__(self, spec: specs.Clip) -> None:
        super().__init__()
        self.spec = spec
        self._text: Any = None
        tower = {
            "hidden_size": spec.width,
            "intermediate_size": 4 * spec.width,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "projection_dim": spec.embedding,
            "initializer_range": DEVIATION,
        }
        words = {
            "vocab_size": spec.vocabulary,
            "max_position_embeddings": spec.length,
            "pad_token_id": PAD,
            "bos_token_id": START,
            "eos_token_id": END,
        }
        images = {"num_channels": spec.shape[0], "image_size": spec.shape[1], "patch_size": spec.patch}
        self.model = CLIPModel(
            CLIPConfig(text_config=tower | words, vision_config=tower | images, projection_dim=spec.embedding)
        )

    @property
    def text(self) -> Any:
        return self._text

    @text.setter
    def text(self, store: Any) -> None:
        """Raises a ValueError if the store has more words, or another length, than the network."""
        content, spec = store.content, self.spec
        if content.context != [spec.length] or len(content.vocabulary) > spec.vocabulary:
            raise ValueError(
                f"backbone: length {spec.length} and vocabulary {spec.vocabulary} do not fit captions of "
                f"{content.context} tokens, of {len(content.vocabulary)}"
            )
        self._text = store

    def embed_images(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) in [-1, 1] to directions (n, embedding), of length 1."""
        return normalize(self.model.get_image_features(pixel_values=images).pooler_output, dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token numbers (n, length), int64, to directions (n, embedding), of length 1."""
        return normalize(self.model.get_text_features(input_ids=tokens).pooler_output, dim=-1)

    def forward(self, images: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions of images (B, C, H, W) and of captions y (B,), and the scale () of their cosines.

        Raises:
            ValueError: ``text`` is not set.
        """
        if self._text is None:
            raise ValueError("backbone.kind: clip needs a store of text of kind words; pass --text")
        scale = self.model.logit_scale.exp().clamp(max=LARGEST_SCALE)
        return self.embed_images(images), self.embed_tokens(self._text(y).context), scale

    def text_tower(self) -> CLIPTextModelWithProjection:
        """A frozen copy of the text tower, of the class that Stable Diffusion 3's pipeline has."""
        tower = CLIPTextModelWithProjection(self.model.config.text_config)
        own = self.model.state_dict()
        tower.load_state_dict({name: own[name] for name in tower.state_dict()})
        return tower.eval().requires_grad_(False)
