"""Qwen3-VL in miniature: a folder in the hub's layout with random weights and a tokenizer made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_text import merges_of, write_record
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

WORDS = ("Yes", "yes", "Ġyes", "ĠYes", "No", "no", "one", "One", "Ġone", "ten")
"""Tokens beside those of single bytes; Ġ is a space, and what follows it is a token before."""
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Qwen2Tokenizer:
    units = sorted(ByteLevel.alphabet())
    merges = merges_of(["Ġ", word[1:]] if word[0] == "Ġ" else [*word] for word in WORDS)
    units += [*map("".join, merges), "<|endoftext|>"]
    vocabulary = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    found = Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    found.add_special_tokens({"extra_special_tokens": [*MARKS]})
    return found


def qwen_folder(folder: Path) -> Path:
    """Weights, tokenizer with its chat template, and processors; returns the record."""
    words = tokenizer()
    marks = {name: words.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 8,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=marks["vision_start"],
        vision_end_token_id=marks["vision_end"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Qwen3VLForConditionalGeneration(config)
        torch.nn.init.normal_(net.lm_head.weight, std=0.5)
    net.save_pretrained(folder, max_shard_size="100KB")
    words.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    sizes = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 8}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    Qwen2VLImageProcessorPil(**sizes, **half).save_pretrained(folder)
    video = {"video_processor_type": "Qwen3VLVideoProcessor", **sizes, **half}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return write_record(folder)
