"""LoRA files of diffusers, with what they are in the header, and the student in a pipeline again.

A file's names are diffusers': ``transformer.LAYER.lora_A.weight``. Its header has one key,
``lora_adapter_metadata``, JSON: from ``transformer.`` on what peft needs (rank, alpha and whether there are
biases are not in the weights), and under ``fewstep`` a card of ours, which diffusers leaves alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor

from ..backbones.sd3 import TwoTimes
from ..common.files import atomic
from ..common.tensor_files import open_safetensors, read_all
from ..config.backbones import Lora

PREFIX = "transformer."
EMBEDDING = "time_text_embed."


def save_lora(path: Path, tensors: dict[str, Tensor], lora: Lora, bias: bool, card: dict[str, Any]) -> None:
    """Write adapters, by their names below the transformer, atomically.

    Args:
        lora: rank, alpha and all targets of the adapters in ``tensors``.
        bias: whether their second layers have one.
    """
    options = {
        "r": lora.rank,
        "lora_alpha": lora.rank * lora.scaling,
        "target_modules": sorted(lora.targets),
        "lora_bias": bias,
    }
    about = {**{f"{PREFIX}{key}": value for key, value in options.items()}, "fewstep": card}
    _save(path, {f"{PREFIX}{name}": value for name, value in tensors.items()}, about)


def save_time_embedding(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write what a student's embedding of times has beside that of its base, atomically."""
    _save(path, tensors, {"fewstep": card})


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
    # One key of the header: safetensors writes several in an order that changes from run to run.
    header = {LORA_ADAPTER_METADATA_KEY: json.dumps(about, sort_keys=True)}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(ready, temporary, metadata=header)


def read_exported(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file of these; ``metadata["fewstep"]`` is its card.

    Raises:
        ValueError: damage, or no such metadata in the header.
    """
    with open_safetensors(path) as file:
        header = file.metadata() or {}
        if LORA_ADAPTER_METADATA_KEY not in header:
            raise ValueError(
                f"{path}: no {LORA_ADAPTER_METADATA_KEY} in the header, and the adapters' scale is not known "
                "without it; make the file with fewstep.export"
            )
        about = json.loads(header[LORA_ADAPTER_METADATA_KEY])
        if "fewstep" not in about:
            raise ValueError(f"{path}: fewstep: not in its metadata: fewstep.export did not make this file")
        return read_all(file), about


def load_student(
    transformer: SD3Transformer2DModel, lora: Path, times: Path, expected: Lora | None = None
) -> dict[str, Any]:
    """Turn the transformer of a student's base into the student, in place, from its two files.

    It is then called with timesteps (B, 2), of t and of the target, or with (B,), without a target.

    Args:
        lora: the LoRA file of the two.
        times: target_embedder.safetensors.
        expected: adapters that the file must have.

    Returns:
        The student's card.

    Raises:
        ValueError: files of two students, of other adapters than ``expected``, or a student in one file.
    """
    tensors, about = read_exported(lora)
    embedding, other = read_exported(times)
    card: dict[str, Any] = about["fewstep"]
    if card["files"] != 2:
        raise ValueError(f"{lora}: a student in one file, for plain diffusers: load it without {times}")
    if card["student"] != other["fewstep"]["student"]:
        raise ValueError(f"{times}: belongs to another student than {lora}; export both again")
    options = {key.removeprefix(PREFIX): value for key, value in about.items() if key.startswith(PREFIX)}
    if expected is not None:
        check_adapters(lora, options, expected)
    times_of = transformer.time_text_embed
    TwoTimes.adopt(
        times_of, card["time_scale"], any(name.startswith("target_embedder.") for name in embedding)
    )
    times_of.load_state_dict(times_of.state_dict() | embedding)
    times_of.to(transformer.device, transformer.dtype)
    transformer.load_lora_adapter(tensors, prefix="transformer", metadata=about)
    transformer.requires_grad_(False)
    return card


def check_adapters(path: Path, options: dict[str, Any], expected: Lora) -> None:
    """Refuse a LoRA file of other adapters.

    Raises:
        ValueError: naming the file, the first key that differs, and both values.
    """
    pairs = (
        ("rank", options.get("r"), expected.rank),
        ("alpha", options.get("lora_alpha"), expected.rank * expected.scaling),
        ("targets", options.get("target_modules"), sorted(expected.targets)),
    )
    for key, found, wanted in pairs:
        if found != wanted:
            raise ValueError(f"{path}: lora.{key}: the adapters have {found}, not {wanted}")
