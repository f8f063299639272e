"""The text side of Stable Diffusion 3 in miniature: a diffusers folder with its record, and a small CLIP."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from fewstep.backbones import build
from fewstep.backbones.clip import END, PAD, START
from fewstep.backbones.model_file import save_model
from fewstep.common.folders import visible_files
from fewstep.config import dump
from fewstep.config.assets import AssetFile
from fewstep.config.backbones import Clip
from fewstep.config.settings import Weights
from fewstep.config.text import TextEncoder
from fewstep.data.asset_files import RecordBody, verify
from fewstep.data.text_encoders import vocabulary, word_tokenizer

CAPTIONS = ["a dog", "a red cat", "two cats", "a dog left of a red cat", "a bus and a train"]
LENGTH, T5_LENGTH = 8, 5
CLIP = Clip(
    kind="clip",
    shape=[3, 16, 16],
    patch=8,
    width=16,
    layers=2,
    heads=2,
    embedding=12,
    length=LENGTH,
    vocabulary=24,
)


def encoder(kind: str, dtype: str = "float32", **given: int) -> TextEncoder:
    """The configuration of an encoder of the files below."""
    weights = {
        "words": None,
        "clip": Weights(method="tiny-clip"),
        "sd3": Weights(asset="tiny-sd3", file="model_index.json"),
    }[kind]
    sizes = {"length": LENGTH, "t5_length": T5_LENGTH} | given
    return TextEncoder(kind=kind, weights=weights, dtype=dtype, **sizes)


def write_record(folder: Path, **given: str) -> Path:
    """The record of all files in ``folder``, beside it."""
    files = [
        verify(folder / name, AssetFile(name=name, sha256=None), "here") for name in visible_files(folder)
    ]
    body = RecordBody(name=folder.name, kind="http", title="", licence="", files=files, **given)
    record = folder.with_name(f"{folder.name}.json")
    record.write_text(dump(body), encoding="utf-8")
    return record


def merges_of(words: Iterable[list[str]]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding by which the units of each word become one, from the left."""
    merges: dict[tuple[str, str], None] = {}
    for units in words:
        while len(units) > 1:
            merges[units[0], units[1]] = None
            units = ["".join(units[:2]), *units[2:]]
    return list(merges)


def sd3_folder(folder: Path, t5: bool = True) -> Path:
    """Tokenizers and text encoders as a diffusers folder has them; returns its record."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    words = vocabulary(CAPTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clips = [
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    vocab_size=len(words),
                    hidden_size=width,
                    intermediate_size=32,
                    projection_dim=projection,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    max_position_embeddings=LENGTH,
                    bos_token_id=START,
                    eos_token_id=END,
                    pad_token_id=PAD,
                )
            )
            for width, projection in ((16, 8), (12, 6))
        ]
        sizes = {"d_model": 40, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        t5_model = T5EncoderModel(
            T5Config(vocab_size=len(words), pad_token_id=PAD, eos_token_id=END, **sizes)
        )
    pipe = StableDiffusion3Pipeline(
        transformer=None,
        scheduler=None,
        vae=None,
        text_encoder=clips[0],
        text_encoder_2=clips[1],
        text_encoder_3=t5_model if t5 else None,
        tokenizer=word_tokenizer(words, LENGTH),
        tokenizer_2=word_tokenizer(words, LENGTH),
        tokenizer_3=word_tokenizer(words, 512) if t5 else None,
    )
    pipe.save_pretrained(folder)
    transformer = SD3Transformer2DModel(
        sample_size=4, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=44,
        caption_projection_dim=16, pooled_projection_dim=14, pos_embed_max_size=4, in_channels=4,
    )  # fmt: skip
    transformer.save_config(folder / "transformer")
    return write_record(folder)


def clip_file(path: Path, captions: list[str] = CAPTIONS) -> Path:
    """The model file of an untrained CLIP whose card has the vocabulary of the captions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = build(CLIP)
    save_model(path, net.state_dict(), CLIP, {"text": {"vocabulary": vocabulary(captions)}})
    return path
