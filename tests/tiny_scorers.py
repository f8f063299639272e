"""Published scorers in miniature: random weights in files as their authors write them, and numbers by hand.

The numbers are computed by plain torch from the authors' names, which transformers does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_text import merges_of, write_record
from torch import Tensor
from torch.nn.functional import conv2d, cosine_similarity, gelu, layer_norm, softmax
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from fewstep.config.settings import Weights
from fewstep.config.text import Scorer
from fewstep.evaluation.scorers.geneval import Prompt
from fewstep.evaluation.scorers.interface import Parts

WORDS = ["a", "dog", "red", "cat", "square", "circle"]
SIDE, PATCH = 24, 8
"""Of the images that every network here takes."""
LENGTH = 12
"""Tokens of a prompt for the CLIPs here."""
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
State = dict[str, Tensor]


def parts(
    kind: str, name: str, weights: tuple[Path, str], tokenizer: tuple[Path, str] | None = None
) -> Parts:
    """What a scorer of published weights is opened with: records of assets, each with a name of a file."""
    given = {"weights": weights, "tokenizer": tokenizer}
    there = {key: one for key, one in given.items() if one is not None}
    files = {key: Weights(asset=record.stem, file=file) for key, (record, file) in there.items()}
    paths = {key: record for key, (record, _) in there.items()}
    return Parts(name, Scorer(kind=kind, **files), paths, None, Path("unread"), torch.device("cpu"))


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """Attention of (n, tokens, width); ``hidden`` is true where a query must not look."""
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    return (softmax(scores, -1) @ v).transpose(1, 2).flatten(2)


def prepared(images: Tensor) -> Tensor:
    """uint8 (n, C, H, W) to what the networks take: resized, bicubic, cropped in the middle, normalised."""
    found = []
    for picture in images.expand(-1, 3, -1, -1):
        _, height, width = picture.shape
        scale = SIDE / min(height, width)
        size = (int(width * scale), int(height * scale))
        resized = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
        cropped = np.asarray(resized)[top : top + SIDE, left : left + SIDE]
        found.append(((cropped / 255 - MEAN) / STD).transpose(2, 0, 1))
    return torch.tensor(np.stack(found), dtype=torch.float32)


# CLIP, by the names of open_clip


def clip_config() -> CLIPConfig:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"hidden_act": "gelu", "initializer_range": 0.5, "initializer_factor": 20.0}
    tokenizer = byte_tokenizer()
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = {"image_size": SIDE, "patch_size": PATCH}
    return CLIPConfig(text_config=tower | words, vision_config=tower | image, projection_dim=8)


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's kind of tokenizer: a token for each letter, and one for each of WORDS."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    units = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = merges_of([*word[:-1], f"{word[-1]}</w>"] for word in WORDS)
    units += [*map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def clip_tokens(prompts: Sequence[str]) -> Tensor:
    """Numbers of whole words of WORDS, between start and end, the first that fit."""
    numbers = byte_tokenizer().get_vocab()
    start, end = numbers["<|startoftext|>"], numbers["<|endoftext|>"]
    rows = [[numbers[f"{word}</w>"] for word in prompt.split()[: LENGTH - 2]] for prompt in prompts]
    return torch.tensor([[start, *row, *[end] * (LENGTH - 1 - len(row))] for row in rows])


def clip_net() -> CLIPModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CLIPModel(clip_config())
        for name, value in net.named_parameters():
            if value.ndim < 2 and name != "logit_scale":
                torch.nn.init.normal_(value, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    torch.nn.init.constant_(net.logit_scale, 4.0)
    return net.eval()


def clip_folder(folder: Path, state: State | None = None) -> Path:
    """A CLIP as the hub has it, with these weights or none; returns the record."""
    clip_config().save_pretrained(folder)
    if state is not None:
        counted = {
            f"{tower}_model.embeddings.position_ids": torch.arange(3)[None] for tower in ("text", "vision")
        }
        save_file(state | counted, folder / "model.safetensors")
    byte_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return write_record(folder)


def prompts(*texts: str) -> list[Prompt]:
    return [{"prompt": text} for text in texts]


def pictures(count: int, height: int = 40, width: int = 33, seed: int = 0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=draws, dtype=torch.uint8)


def open_clip_state() -> State:
    """The weights of `clip_net` by the names of open_clip."""
    ours = {name: value.detach().clone() for name, value in clip_net().named_parameters()}
    found = {
        "logit_scale": ours["logit_scale"],
        "positional_embedding": ours["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": ours["text_model.embeddings.token_embedding.weight"],
        "text_projection": ours["text_projection.weight"].T,
        "visual.class_embedding": ours["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": ours["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": ours["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": ours["visual_projection.weight"].T,
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    for tower, prefix in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            there = f"{tower}.encoder.layers.{layer}"
            here = f"{prefix}transformer.resblocks.{layer}"
            norms |= {f"{here}.ln_1": f"{there}.layer_norm1", f"{here}.ln_2": f"{there}.layer_norm2"}
            norms |= {f"{here}.mlp.c_fc": f"{there}.mlp.fc1", f"{here}.mlp.c_proj": f"{there}.mlp.fc2"}
            norms[f"{here}.attn.out_proj"] = f"{there}.self_attn.out_proj"
            for part in ("weight", "bias"):
                three = [ours[f"{there}.self_attn.{each}_proj.{part}"] for each in "qkv"]
                found[f"{here}.attn.in_proj_{part}"] = torch.cat(three)
    for new, old in norms.items():
        found |= {f"{new}.{part}": ours[f"{old}.{part}"] for part in ("weight", "bias")}
    return {name: value.contiguous() for name, value in found.items()}


def hps_file(path: Path, state: State) -> Path:
    """As HPS v2.1 is published: half precision under `state_dict`; returns the record."""
    path.parent.mkdir(parents=True)
    torch.save({"epoch": 1, "state_dict": {name: value.half() for name, value in state.items()}}, path)
    return write_record(path.parent)


def clip_cosines(state: State, images: Tensor, prompts: Sequence[str]) -> Tensor:
    x = conv2d(prepared(images), state["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + state["visual.positional_embedding"]
    x = _clip_layers(state, "visual.", norm(state, "visual.ln_pre", x, 1e-5), None)
    of_images = norm(state, "visual.ln_post", x[:, 0], 1e-5) @ state["visual.proj"]
    tokens = clip_tokens(prompts)
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    x = norm(state, "ln_final", _clip_layers(state, "", x, later), 1e-5)
    ends = (tokens == tokens.max()).int().argmax(1)
    of_texts = x[torch.arange(len(x)), ends] @ state["text_projection"]
    return cosine_similarity(of_images, of_texts)


def _clip_layers(state: State, prefix: str, x: Tensor, hidden: Tensor | None) -> Tensor:
    for layer in range(2):
        name = f"{prefix}transformer.resblocks.{layer}"
        fused = norm(state, f"{name}.ln_1", x, 1e-5) @ state[f"{name}.attn.in_proj_weight"].T
        q, k, v = (fused + state[f"{name}.attn.in_proj_bias"]).chunk(3, -1)
        x = x + linear(state, f"{name}.attn.out_proj", attend(q, k, v, 2, hidden))
        inner = gelu(linear(state, f"{name}.mlp.c_fc", norm(state, f"{name}.ln_2", x, 1e-5)))
        x = x + linear(state, f"{name}.mlp.c_proj", inner)
    return x


# BLIP and ImageReward, by their own names

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
WIDTH, TEXT_WIDTH, SPACE = 16, 12, 8
BLIP: dict[str, Any] = {
    "vision_config": {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "layer_norm_eps": 1e-6,
    },
    "text_config": {
        "vocab_size": len(BERT) + 2,
        "hidden_size": TEXT_WIDTH,
        "encoder_hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 40,
        "bos_token_id": len(BERT),
        "sep_token_id": BERT.index("[SEP]"),
    },
    "image_text_hidden_size": SPACE,
}
"""In the place of `blip_score.LARGE`."""
TOKENS = 35
HEAD = {0: 1024, 2: 128, 4: 64, 6: 16, 7: 1}
"""Number of a layer of ImageReward's head -> its outputs."""


def vocabulary(folder: Path) -> Path:
    """BERT's file of words, with its record."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(BERT) + "\n")
    return write_record(folder)


def blip_state() -> State:
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, WIDTH),
        "visual_encoder.pos_embed": (1, (SIDE // PATCH) ** 2 + 1, WIDTH),
        "text_encoder.embeddings.word_embeddings.weight": (len(BERT) + 2, TEXT_WIDTH),
        "text_encoder.embeddings.position_embeddings.weight": (40, TEXT_WIDTH),
        "visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (WIDTH,),
    }
    linears = {"vision_proj": (SPACE, WIDTH), "text_proj": (SPACE, TEXT_WIDTH)}
    norms = {"visual_encoder.norm": WIDTH, "text_encoder.embeddings.LayerNorm": TEXT_WIDTH}
    for layer in range(2):
        name = f"visual_encoder.blocks.{layer}"
        norms |= {f"{name}.norm1": WIDTH, f"{name}.norm2": WIDTH}
        linears |= {f"{name}.attn.qkv": (3 * WIDTH, WIDTH), f"{name}.attn.proj": (WIDTH, WIDTH)}
        linears |= {f"{name}.mlp.fc1": (32, WIDTH), f"{name}.mlp.fc2": (WIDTH, 32)}
        name = f"text_encoder.encoder.layer.{layer}"
        for kind, width in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            inputs = {"query": TEXT_WIDTH, "key": width, "value": width}
            linears |= {f"{name}.{kind}.self.{one}": (TEXT_WIDTH, size) for one, size in inputs.items()}
            linears[f"{name}.{kind}.output.dense"] = (TEXT_WIDTH, TEXT_WIDTH)
            norms[f"{name}.{kind}.output.LayerNorm"] = TEXT_WIDTH
        linears |= {f"{name}.intermediate.dense": (24, TEXT_WIDTH), f"{name}.output.dense": (TEXT_WIDTH, 24)}
        norms[f"{name}.output.LayerNorm"] = TEXT_WIDTH
    return _random(shapes, linears, norms, 0)


def _random(
    shapes: dict[str, tuple[int, ...]], linears: dict[str, tuple[int, int]], norms: dict[str, int], seed: int
) -> State:
    draws = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    for name, shape in linears.items():
        found[f"{name}.weight"] = torch.randn(shape, generator=draws) / shape[1] ** 0.5
        found[f"{name}.bias"] = torch.randn(shape[0], generator=draws) / 3
    for name, width in norms.items():
        found[f"{name}.weight"] = 1 + torch.randn(width, generator=draws) / 3
        found[f"{name}.bias"] = torch.randn(width, generator=draws) / 3
    return found


def blip_file(path: Path, state: State) -> Path:
    """As BLIP is published: under `model`, with what only pretraining needed; returns the record."""
    more = {
        "itm_head.weight": torch.zeros(2, TEXT_WIDTH),
        "temp": torch.tensor(0.07),
        "queue_ptr": torch.zeros(1, dtype=torch.long),
        "image_queue": torch.zeros(SPACE, 4),
        "text_encoder.embeddings.position_ids": torch.arange(40)[None],
        "text_decoder.cls.predictions.bias": torch.zeros(3),
    }
    averages = {
        name.replace("encoder.", "encoder_m.", 1).replace("_proj.", "_proj_m.", 1): torch.zeros(1)
        for name in state
        if name.startswith(("visual_encoder", "vision_proj", "text_proj"))
    }
    path.parent.mkdir(parents=True)
    torch.save({"model": state | more | averages}, path)
    return write_record(path.parent)


def head_state() -> State:
    inputs = [TEXT_WIDTH, *HEAD.values()]
    linears = {f"mlp.layers.{place}": (size, inputs[row]) for row, (place, size) in enumerate(HEAD.items())}
    return _random({}, linears, {}, 1)


def image_reward_file(path: Path, state: State) -> Path:
    """As ImageReward is published: BLIP's weights under `blip.`, and its head; returns the record."""
    more = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
    path.parent.mkdir(parents=True)
    torch.save({f"blip.{name}": value for name, value in state.items()} | more | head_state(), path)
    return write_record(path.parent)


def blip_cosines(state: State, images: Tensor, prompts: Sequence[str]) -> Tensor:
    of_images = linear(state, "vision_proj", _blip_images(state, images)[:, 0])
    return cosine_similarity(of_images, linear(state, "text_proj", _blip_texts(state, prompts, None)))


def rewards(state: State, images: Tensor, prompts: Sequence[str]) -> Tensor:
    x = _blip_texts(state, prompts, _blip_images(state, images))
    head = head_state()
    for place in HEAD:
        x = linear(head, f"mlp.layers.{place}", x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def _blip_images(state: State, images: Tensor) -> Tensor:
    weight, bias = (state[f"visual_encoder.patch_embed.proj.{part}"] for part in ("weight", "bias"))
    x = conv2d(prepared(images), weight, bias, stride=PATCH).flatten(2).mT
    x = torch.cat([state["visual_encoder.cls_token"].expand(len(x), -1, -1), x], 1)
    x = x + state["visual_encoder.pos_embed"]
    for layer in range(2):
        name = f"visual_encoder.blocks.{layer}"
        q, k, v = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(state, f"{name}.attn.proj", attend(q, k, v, 2))
        inner = gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", inner)
    return norm(state, "visual_encoder.norm", x, 1e-6)


def _blip_texts(state: State, prompts: Sequence[str], images: Tensor | None) -> Tensor:
    """State of the first token; without the images every token looks at all of its own prompt."""
    rows = [[2, *(BERT.index(word) for word in prompt.split()[: TOKENS - 2]), 3] for prompt in prompts]
    tokens = torch.tensor([[*row, *[0] * (TOKENS - len(row))] for row in rows])
    padding = (tokens == 0)[:, None, None]
    x = state["text_encoder.embeddings.word_embeddings.weight"][tokens]
    x = x + state["text_encoder.embeddings.position_embeddings.weight"][:TOKENS]
    x = norm(state, "text_encoder.embeddings.LayerNorm", x, 1e-12)
    for layer in range(2):
        name = f"text_encoder.encoder.layer.{layer}"
        for kind, source in (("attention", None), ("crossattention", images)):
            if kind == "crossattention" and source is None:
                continue
            seen = x if source is None else source
            given = [
                linear(state, f"{name}.{kind}.self.{one}", each)
                for one, each in zip(("query", "key", "value"), (x, seen, seen), strict=True)
            ]
            found = attend(*given, 3, padding if source is None else None)
            x = norm(
                state,
                f"{name}.{kind}.output.LayerNorm",
                linear(state, f"{name}.{kind}.output.dense", found) + x,
                1e-12,
            )
        inner = gelu(linear(state, f"{name}.intermediate.dense", x))
        x = norm(state, f"{name}.output.LayerNorm", linear(state, f"{name}.output.dense", inner) + x, 1e-12)
    return x[:, 0]
