"""Answers of a model that looks at images: Qwen3-VL (arXiv 2511.21631) by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...common.files import reading
from .published import load_folder

YES = ("Yes", "yes", " Yes", " yes")
NO = ("No", "no", " No", " no")
ROWS = 16
"""Most questions at once."""


class Answerer(Protocol):
    """A model that answers questions about images."""

    called: str
    """The model in words."""

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """Probabilities of what the answers begin with, float32 (n, tokens) on the host.

        Args:
            images: uint8 (n, C, H, W) on the host.
            questions: of each image.
        """

    def beginnings(self, answers: Sequence[str]) -> list[int]:
        """The different tokens that these answers begin with."""

    def text(self, token: int) -> str:
        """A token in letters."""


class Qwen3VL:
    """Answers by the probabilities of the first token of what it would say.

    Args:
        folder: of weights, tokenizer, chat template and image processor, as the hub has them.

    Raises:
        ValueError: naming the folder: something is missing, damaged, or of another model.
    """

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

        self.called = "Qwen3-VL"
        with reading(folder, "the processor of a Qwen3-VL"):
            self._processor: Any = Qwen3VLProcessor.from_pretrained(folder, local_files_only=True)
            self._processor.tokenizer.padding_side = "left"  # the last token is where the answer begins
        if self._processor.chat_template is None:
            raise ValueError(f"{folder}: has no chat template, which says how a question is put")
        self._net: Any = load_folder(
            Qwen3VLForConditionalGeneration, folder, "a Qwen3-VL of transformers", dtype="auto"
        ).to(device)
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        pictures = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        asked = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in zip(pictures, questions, strict=True)
        ]
        given = self._processor.apply_chat_template(
            asked,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        output = self._net(**given.to(self._device), logits_to_keep=1, use_cache=False)
        found: Tensor = output.logits[:, -1].float().softmax(-1).cpu()
        return found

    def beginnings(self, answers: Sequence[str]) -> list[int]:
        tokenizer = self._processor.tokenizer
        first = (tokenizer.encode(answer, add_special_tokens=False)[0] for answer in answers)
        return list(dict.fromkeys(first))

    def text(self, token: int) -> str:
        found: str = self._processor.tokenizer.decode([token])
        return found
