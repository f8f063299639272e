"""What turns captions into numbers of words, or into the embeddings of Stable Diffusion 3's pipeline.

SD3's context and pooled embedding are made by diffusers' own StableDiffusion3Pipeline.encode_prompt, so that
a training and a user's pipeline of the same dtype have the same ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..backbones.clip import END, PAD, START, UNKNOWN, Clip
from ..backbones.model_file import load_network
from ..common.files import first_line, sha256
from ..config import ConfigError
from ..config.backbones import Backbone
from ..config.text import TextEncoder
from .asset_files import Record, read_record
from .text_store import Text

if TYPE_CHECKING:
    from diffusers import StableDiffusion3Pipeline
    from transformers import PreTrainedTokenizerFast

SPECIAL = {PAD: "<pad>", UNKNOWN: "<unk>", START: "<s>", END: "</s>"}
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""Parts of a pipeline; the third is T5, which may be missing."""


class CaptionEncoder(Protocol):
    """A text encoder with its tokenizers, without gradients.

    It is given one caption at a time, so that an embedding does not depend on other captions. In batches its
    last bits depend on the number of rows: of a CLIP of width 64 by 2e-6, on a CPU in float32.
    """

    weights: dict[str, str]
    """Part -> SHA-256 of its files."""
    vocabulary: list[str]
    """Of kind words: tokens by their numbers."""
    context: list[int]
    """Shape of a caption's context, (L, D) or (length,)."""
    pooled: int
    """Width of a caption's pooled embedding."""

    def __call__(self, caption: str) -> Text:
        """Context (1, L, D) and pooled (1, P) in the dtype of a store; words: (1, length) and (1, 0)."""
        ...

    def too_long(self, captions: Sequence[str]) -> dict[str, int]:
        """For each tokenizer, how many captions have more tokens than it keeps."""
        ...


def open_text_encoder(
    encoder: TextEncoder,
    weights: Path | None,
    backbone: Backbone | None,
    captions: Sequence[str],
    device: torch.device | str = "cpu",
) -> CaptionEncoder:
    """Load an encoder.

    Args:
        weights: a model file of this workflow (clip), or the record of a fetched asset (sd3).
        backbone: network of a CLIP.
        captions: from which words take their vocabulary.

    Raises:
        ConfigError: weights that are missing, of the wrong kind, damaged, or of another length.
    """
    if encoder.kind == "words":
        return Words(encoder, vocabulary(captions))
    if weights is None:
        raise ConfigError(f"encoder.kind: {encoder.kind} needs a file of weights; pass --encoder")
    pipe, hashes, width = _pipeline(encoder, weights, backbone)
    return Sd3Text(pipe, encoder, hashes, width, device)


def sd3_text_parts(encoder: TextEncoder, weights: Path, backbone: Backbone | None = None) -> dict[str, Any]:
    """Tokenizers and text encoders of a StableDiffusion3Pipeline by their names there; without T5 None.

    The networks are in the dtype of ``encoder``, frozen and in evaluation mode.

    Args:
        weights: a model file of this workflow (kind clip), or the record of a fetched asset (kind sd3).
        backbone: network of a CLIP.

    Raises:
        ConfigError: as for `open_text_encoder`.
    """
    pipe, _, _ = _pipeline(encoder, weights, backbone)
    return {name: getattr(pipe, name) for name in (*TOKENIZERS, *ENCODERS)}


def vocabulary(captions: Sequence[str]) -> list[str]:
    """The words of the captions, sorted, behind the tokens that are no words."""
    from tokenizers.pre_tokenizers import Whitespace

    split = Whitespace().pre_tokenize_str
    words = {word for caption in dict.fromkeys(captions) for word, _ in split(caption.lower())}
    return [*SPECIAL.values(), *sorted(words - set(SPECIAL.values()))]


def word_tokenizer(vocabulary: Sequence[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words in lower case, with start and end, cut and padded to ``length``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {name: number for number, name in SPECIAL.items()}
    numbers = {word: number for number, word in enumerate(vocabulary)}
    if {name: numbers.get(name) for name in special} != special:
        raise ValueError(f"vocabulary: begins with {list(vocabulary[:4])}, not with {list(special)}")
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=SPECIAL[UNKNOWN]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(SPECIAL[number], number) for number in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[START]} $A {SPECIAL[END]}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[PAD],
        unk_token=SPECIAL[UNKNOWN],
        bos_token=SPECIAL[START],
        eos_token=SPECIAL[END],
        model_max_length=length,
    )


def word_numbers(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> Tensor:
    """Token numbers (n, length) of captions, int64."""
    given = list(captions)
    found: Tensor = tokenizer(given, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return found


class Words:
    """Numbers of whole words.

    Args:
        vocabulary: tokens by their numbers.
    """

    def __init__(self, encoder: TextEncoder, vocabulary: list[str]) -> None:
        self.weights: dict[str, str] = {}
        self.vocabulary = vocabulary
        self.context, self.pooled = [encoder.length], 0
        self._tokenizer = word_tokenizer(vocabulary, encoder.length)

    def __call__(self, caption: str) -> Text:
        return Text(word_numbers(self._tokenizer, [caption]), torch.empty(1, 0, dtype=torch.int64))

    def too_long(self, captions: Sequence[str]) -> dict[str, int]:
        return {"tokenizer": _longer(self._tokenizer, captions, self.context[0])}


class Sd3Text:
    """The text side of a StableDiffusion3Pipeline.

    Args:
        hashes: part -> SHA-256 of its files.
        width: of the context.
    """

    def __init__(
        self,
        pipe: StableDiffusion3Pipeline,
        encoder: TextEncoder,
        hashes: dict[str, str],
        width: int,
        device: torch.device | str,
    ) -> None:
        self.weights, self.vocabulary = hashes, list[str]()
        self.context = [encoder.length + encoder.t5_length, width]
        self._pipe, self._encoder, self._device = pipe, encoder, torch.device(device)
        # it would warn of every caption that is cut; `too_long` counts them
        logging.getLogger(type(pipe).__module__).setLevel(logging.ERROR)
        clips = (pipe.text_encoder, pipe.text_encoder_2)
        self.pooled = sum(clip.config.projection_dim for clip in clips)
        for name in ENCODERS:
            if (network := getattr(pipe, name)) is not None:
                network.to(self._device)

    @torch.no_grad()
    def __call__(self, caption: str) -> Text:
        context, _, pooled, _ = self._pipe.encode_prompt(
            caption,
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._encoder.t5_length,
        )
        return Text(context, pooled)

    def too_long(self, captions: Sequence[str]) -> dict[str, int]:
        lengths = (self._encoder.length, self._encoder.length, self._encoder.t5_length)
        tokenizers = {name: getattr(self._pipe, name) for name in TOKENIZERS}
        return {
            name: _longer(tokenizer, captions, length)
            for (name, tokenizer), length in zip(tokenizers.items(), lengths, strict=True)
            if tokenizer is not None
        }


def _longer(tokenizer: Any, captions: Sequence[str], length: int) -> int:
    """How many captions have more tokens than ``length``, with start and end."""
    with _quiet():
        return sum(len(ids) > length for ids in tokenizer(list(captions)).input_ids)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of diffusers and transformers."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(each, each.get_verbosity()) for each in (of_diffusers, of_transformers)]
    for each, _ in before:
        each.set_verbosity_error()
    try:
        yield
    finally:
        for each, level in before:
            each.set_verbosity(level)


def _pipeline(
    encoder: TextEncoder, weights: Path, backbone: Backbone | None
) -> tuple[StableDiffusion3Pipeline, dict[str, str], int]:
    """A pipeline of tokenizers and text encoders alone; the hashes of their files; the context's width."""
    load = _trained_clip if encoder.kind == "clip" else _published
    parts, hashes, width = load(encoder, weights, backbone)
    dtype = getattr(torch, encoder.dtype)
    for name in ENCODERS:
        if (network := parts[name]) is not None:
            network.to(dtype).eval().requires_grad_(False)
    for name in TOKENIZERS[:2]:
        if (own := parts[name].model_max_length) != encoder.length:
            raise ConfigError(f"{weights}: {name}: keeps {own} tokens, encoder.length is {encoder.length}")
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline(transformer=None, scheduler=None, vae=None, **parts)
    # of all the transformer encode_prompt asks for the width of T5's zeros, where there is no T5
    pipe.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
    return pipe, hashes, width


Parts = tuple[dict[str, Any], dict[str, str], int]
"""Parts of a pipeline by their names, hashes of their files, and the context's width."""


def _trained_clip(encoder: TextEncoder, weights: Path, backbone: Backbone | None) -> Parts:
    """The text tower of a CLIP of this workflow as both of SD3's text encoders, with zeros for T5's."""
    net, card = load_network(weights, backbone)
    if not isinstance(net, Clip):
        raise ConfigError(f"{weights}: encoder.kind: clip needs a model of backbone clip")
    words = card.get("text", {}).get("vocabulary")
    if not words:
        raise ConfigError(f"{weights}: text.vocabulary is missing in its card; train the CLIP again")
    parts: dict[str, Any] = dict.fromkeys((*TOKENIZERS, *ENCODERS))
    for name in TOKENIZERS[:2]:
        parts[name] = word_tokenizer(words, net.spec.length)
    for name in ENCODERS[:2]:
        parts[name] = net.text_tower()
    return parts, {"clip": sha256(weights)}, 2 * net.spec.width


def _published(encoder: TextEncoder, weights: Path, backbone: Backbone | None) -> Parts:
    """Tokenizers and text encoders of a diffusers folder; T5 if it is there."""
    record = read_record(weights)
    record.verified("model_index.json")
    files = {
        name: [file.name for file in record.body.files if file.name.startswith(f"{name}/")]
        for name in (*TOKENIZERS, *ENCODERS)
    }
    without_t5 = not files["text_encoder_3"]
    wanted = [name for name in files if not (without_t5 and name.endswith("_3"))]
    for name in wanted:
        if not files[name]:
            raise ConfigError(f"{weights}: files: none in {name}/: not the text side of Stable Diffusion 3")
        record.verified_folder(name)
    parts: dict[str, Any] = dict.fromkeys(files) | _load(record.folder, wanted, encoder)
    if without_t5:
        config, _ = record.verified("transformer/config.json")
        width = json.loads(config.read_text(encoding="utf-8")).get("joint_attention_dim")
        if not isinstance(width, int):
            raise ConfigError(f"{config}: joint_attention_dim: {width!r} is not a width")
    else:
        width = parts["text_encoder_3"].config.d_model
    return parts, {name: _digest(record, files[name]) for name in wanted}, width


def _load(folder: Path, wanted: Sequence[str], encoder: TextEncoder) -> dict[str, Any]:
    from diffusers import StableDiffusion3Pipeline

    left_out = {"transformer", "vae", "scheduler", *TOKENIZERS, *ENCODERS} - set(wanted)
    try:
        with _quiet():
            pipe = StableDiffusion3Pipeline.from_pretrained(
                folder,
                **dict.fromkeys(left_out),
                dtype=getattr(torch, encoder.dtype),
                use_safetensors=True,
                local_files_only=True,
            )
    except Exception as error:  # of three libraries, for damage of all kinds
        raise ConfigError(f"{folder}: not the text side of Stable Diffusion 3: {first_line(error)}") from None
    return {name: getattr(pipe, name) for name in wanted}


def _digest(record: Record, names: list[str]) -> str:
    """SHA-256 over names and hashes of some of a record's files."""
    hashes = {file.name: file.sha256 for file in record.body.files}
    lines = "".join(f"{hashes[name]} {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()
