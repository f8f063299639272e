"""Model files: safetensors with a card (JSON) in the header that says what the weights are.

The card's `sha256` is over the rest of the card and all tensors; a file is read only as it was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from ..common.cli import first_few
from ..common.files import atomic
from ..common.tensor_files import open_safetensors, read_all
from ..config.backbones import Backbone
from ..config.settings import Tokenizer
from . import build


def save_model(
    path: str | Path, tensors: dict[str, Tensor], backbone: Backbone, card: dict[str, Any]
) -> None:
    """Write weights atomically, on the CPU; ``backbone`` goes into the card."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    card = {**card, "backbone": backbone.model_dump(mode="json")}
    card["sha256"] = _checksum(ready, card)
    with atomic(path) as temporary:
        save_file(ready, temporary, metadata={"card": json.dumps(card, sort_keys=True)})


def load_model(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights (on the CPU) and card.

    Raises:
        ValueError: the file is damaged, or has no card, so that this workflow did not write it.
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if "card" not in metadata:
            raise ValueError(
                f"{path}: no card in the header; make the file with fewstep.train or fewstep.adopt"
            )
        tensors, card = read_all(file), json.loads(metadata["card"])
        if card.get("sha256") != _checksum(tensors, card):
            raise ValueError(f"{path}: damaged: weights or card are not those of its sha256; make it again")
    return tensors, card


def _checksum(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """SHA-256 over the card without its own, and names, types, shapes and bytes of the tensors."""
    rest = json.loads(json.dumps({key: value for key, value in card.items() if key != "sha256"}))
    total = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def load_network(path: str | Path, expected: Backbone | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a model file, frozen and in evaluation mode, and its card.

    Raises:
        ValueError: the file is damaged, or holds another backbone than ``expected``.
    """
    tensors, card = load_model(path)
    backbone: Backbone = TypeAdapter(Backbone).validate_json(json.dumps(card["backbone"]))
    if expected is not None and backbone != expected:
        raise ValueError(f"{path}: holds backbone {backbone}, not {expected}; make the file again")
    net = build(backbone)
    load_compatible(net, tensors, str(path))
    return net.eval().requires_grad_(False), card


def check_tokenizer(
    card: dict[str, Any], tokenizer: Tokenizer, path: str | Path, weights: str | None = None
) -> None:
    """Refuse a network of other latents than those it is to be used with.

    ``weights``: SHA-256 of the tokenizer's weights, compared if the card names those it was trained with.

    Raises:
        ValueError: naming the file and the fields that differ.
    """
    latents = card.get("latents", {})
    trained, asked = latents.get("tokenizer", {}), tokenizer.model_dump(mode="json")
    trained_weights = latents.get("weights")
    if weights and trained_weights and trained_weights != weights:
        raise ValueError(
            f"{path}: was trained with other tokenizer weights: sha256 {trained_weights}, not {weights}"
        )
    differences = [
        f"{key} {trained[key]!r} there, {asked[key]!r} here"
        for key in asked
        if key in trained and trained[key] != asked[key]
    ]
    if not trained or differences:
        what = "; ".join(differences) or "its card names none"
        raise ValueError(f"{path}: was trained on latents of another tokenizer ({what})")


def load_compatible(net: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load ``tensors`` from ``origin`` (a name for messages) into ``net``, whose dtype they take.

    Two parts that students add may be absent as a whole: the target-time embedding ``r_embedder``
    then keeps its initial weights, and the flow-map head ``final_layer_u`` becomes a copy of ``final_layer``.

    Raises:
        ValueError: naming missing and unexpected tensors, and those of another shape.
    """
    own = net.state_dict()
    full = dict(tensors)
    if not any(name.startswith("r_embedder.") for name in tensors):
        full |= {name: value for name, value in own.items() if name.startswith("r_embedder.")}
    if not any(name.startswith("final_layer_u.") for name in tensors):
        copied = {name: name.replace("final_layer_u.", "final_layer.", 1) for name in own}
        full |= {name: tensors[of] for name, of in copied.items() if of != name and of in tensors}
    faults = []
    if missing := [name for name in own if name not in full]:
        faults.append(f"missing {first_few(missing)}")
    if unexpected := [name for name in full if name not in own]:
        faults.append(f"unexpected {first_few(unexpected)}")
    if other := [name for name in own if name in full and full[name].shape != own[name].shape]:
        shapes = (f"{name} is {list(full[name].shape)}, not {list(own[name].shape)}" for name in other)
        faults.append(f"shape of {first_few(shapes)}")
    if faults:
        raise ValueError(f"{origin} does not fit the backbone: {'; '.join(faults)}")
    net.load_state_dict(full)
