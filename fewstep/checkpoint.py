"""Model files: safetensors with a card (JSON) in the header that says what the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .backbones import build
from .backbones.state import inherit
from .common.files import atomic
from .config.settings import Backbone, Tokenizer


def save_model(
    path: str | Path, tensors: dict[str, Tensor], backbone: Backbone, card: dict[str, Any]
) -> None:
    """Write weights atomically, on the CPU; ``backbone`` goes into the card."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**card, "backbone": backbone.model_dump(mode="json")}, sort_keys=True)
    with atomic(path) as temporary:
        save_file(ready, temporary, metadata={"card": text})


def load_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights (on the CPU) and card."""
    card = load_card(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118


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


def check_tokenizer(
    card: dict[str, Any], tokenizer: Tokenizer, path: str | Path, weights: str | None = None
) -> None:
    """Refuse a network of other latents than those it is to be used with.

    ``weights``: SHA-256 of the tokenizer's weights, compared if the card knows those it was trained with.

    Raises:
        ValueError: naming the file and the fields that differ.
    """
    made = card.get("latents", {}).get("tokenizer", {})
    asked = tokenizer.model_dump(mode="json")
    known = card.get("latents", {}).get("weights")
    if None not in (known, weights) and known != weights:
        raise ValueError(f"{path}: was trained with other tokenizer weights: sha256 {known}, not {weights}")
    differences = [
        f"{key} {made[key]!r} there, {asked[key]!r} here"
        for key in asked
        if key in made and made[key] != asked[key]
    ]
    if not made or differences:
        what = "; ".join(differences) or "its card names none"
        raise ValueError(f"{path}: was trained on latents of another tokenizer ({what})")


def load_network(path: str | Path, expected: Backbone | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a model file, frozen and in evaluation mode, and its card.

    Raises:
        ValueError: the file holds another backbone than ``expected``.
    """
    tensors, card = load_model(path)
    backbone: Backbone = TypeAdapter(Backbone).validate_json(json.dumps(card["backbone"]))
    if expected is not None and backbone != expected:
        raise ValueError(f"{path}: holds backbone {backbone}, not {expected}; make the file again")
    net = build(backbone)
    inherit(net, tensors, str(path))
    return net.eval().requires_grad_(False), card
