"""Model files: safetensors with a card (JSON) in the header that says what the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .files import atomic


def save_model(path: str | Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write weights and card atomically; tensors are stored contiguous, on the CPU."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        save_file(ready, temporary, metadata={"card": json.dumps(card, sort_keys=True)})


def load_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights (on the CPU) and card."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, load_card(path)


def load_card(path: str | Path) -> dict[str, Any]:
    """Read the card alone.

    Raises:
        ValueError: the file has no card, so it was not written by this workflow.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "card" not in metadata:
        raise ValueError(f"{path}: no card in the header; make the file with fewstep.train or fewstep.adopt")
    card: dict[str, Any] = json.loads(metadata["card"])
    return card
