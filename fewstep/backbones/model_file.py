"""Model files: safetensors with a card (JSON) in the header that says what the weights are.

A file of adapters holds only what is trained; its card's `base` is the SHA-256 of the file of their base, the
network below them.
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

from .. import __version__
from ..common.cli import first_few
from ..common.files import atomic, sha256
from ..common.tensor_files import open_safetensors, read_all
from ..config.backbones import Backbone
from ..config.base import read_spec
from ..config.sampling import Sampling
from ..config.settings import Tokenizer
from . import build
from .lora import base_name


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


def sampling_card(spec: Path | None) -> dict[str, Any]:
    """What a card says of sampling from its network, by the file of a `Sampling`; nothing without one.

    Raises:
        ConfigError: a bad file.
    """
    return {} if spec is None else {"sampling": read_spec(Sampling, spec).model_dump(mode="json")}


def versions() -> dict[str, str]:
    """Of what makes a model file."""
    return {"fewstep": __version__, "torch": torch.__version__}


def load_network(
    path: str | Path, expected: Backbone | None = None, base: str | Path | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a model file, frozen and in evaluation mode, and its card.

    Args:
        expected: backbone that the file must hold.
        base: model file of the network below adapters; None where there are none.

    Raises:
        ValueError: a file is damaged, ``path`` holds another backbone than ``expected``, or ``base`` is not
            the one that it belongs to.
    """
    tensors, card = load_model(path)
    backbone = backbone_of(card)
    if expected is not None and backbone != expected:
        raise ValueError(f"{path}: holds backbone {_changed(backbone, expected)}; make the file again")
    return network_of(path, tensors, backbone, card, base), card


def network_of(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    backbone: Backbone,
    card: Mapping[str, Any],
    base: str | Path | None = None,
) -> nn.Module:
    """The network of what `load_model` has read of ``path``; arguments and errors as for `load_network`."""
    net = build(backbone)
    names: frozenset[str] | None = getattr(net, "trained", None)
    if (names is None) != (base is None):
        remedy = (
            "a whole network: leave --base out" if base else "adapters: give --base, the file of their base"
        )
        raise ValueError(f"{path}: holds {remedy}")
    if names is not None and base is not None:
        if (found := sha256(base)) != card.get("base"):
            raise ValueError(f"{base}: has sha256 {found}, but the base of {path} has {card.get('base')}")
        load_base(net, backbone, base)
        rest = {name: tensor for name, tensor in net.state_dict().items() if name not in names}
        _load(net, rest | dict(tensors), str(path))
    else:
        load_compatible(net, tensors, str(path))
    return net.eval().requires_grad_(False)


def load_base(net: nn.Module, backbone: Backbone, path: str | Path) -> dict[str, Any]:
    """Load the weights below the adapters of ``net``, which is of ``backbone``; the card of their file.

    Raises:
        ValueError: the file is damaged, or holds another network than ``backbone`` without adapters and
            target time.
    """
    tensors, card = load_model(path)
    wanted = backbone.model_copy(update={"lora": None, "target_time": False})
    if (found := backbone_of(card)) != wanted:
        raise ValueError(f"{path}: is not the base of these adapters: backbone {_changed(found, wanted)}")
    load_compatible(net, tensors, str(path))
    return card


def backbone_of(card: Mapping[str, Any]) -> Backbone:
    """The network that a card, or other JSON with a key `backbone`, is of."""
    found: Backbone = TypeAdapter(Backbone).validate_json(json.dumps(card["backbone"]))
    return found


def _changed(found: Backbone, wanted: Backbone) -> str:
    """The keys that differ, each with its value found and its value wanted."""
    ours, theirs = (each.model_dump(mode="json") for each in (found, wanted))
    keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    return "; ".join(f"{key}: {ours.get(key)}, not {theirs.get(key)}" for key in keys)


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


def check_text(card: Mapping[str, Any], text: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a network that learned from other embeddings of captions than those it is to be given.

    The captions themselves may be others. Published weights, whose card names no embeddings, take any.

    Args:
        text: what is known of them, as `data.text_store.TextStore.card` has it.

    Raises:
        ValueError: naming the file and the fields that differ.
    """
    learned = card.get("text") or {}
    differences = [
        f"{key} {learned[key]!r} there, {text[key]!r} here"
        for key in ("encoder", "weights", "context", "pooled", "pooling", "dtype")
        if key in learned and key in text and learned[key] != text[key]
    ]
    if differences:
        raise ValueError(f"{path}: learned from other embeddings of captions ({'; '.join(differences)})")


ADDED = (".r_embedder.", ".target_embedder.", ".lora_", ".scalar_head.")
"""Parts of the names of what a student has beside its teacher."""


def load_compatible(net: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load ``tensors`` from ``origin`` (a name for messages) into ``net``, whose dtype they take.

    Parts that students add may be absent as a whole: adapters, the embedding of the target time and the
    scalar's head then keep their initial weights, and the flow-map head ``final_layer_u`` becomes a copy of
    ``final_layer``. Below adapters, layers may have the names that they have without.

    Raises:
        ValueError: naming missing and unexpected tensors, and those of another shape.
    """
    own = net.state_dict()
    adapted = {base_name(name): name for name in own}
    full = {adapted.get(name, name): tensor for name, tensor in tensors.items()}
    for part in ADDED:
        if not any(part in f".{name}" for name in tensors):
            full |= {name: value for name, value in own.items() if part in f".{name}"}
    if not any(name.startswith("final_layer_u.") for name in tensors):
        copied = {name: name.replace("final_layer_u.", "final_layer.", 1) for name in own}
        full |= {name: tensors[of] for name, of in copied.items() if of != name and of in tensors}
    _load(net, full, origin)


def _load(net: nn.Module, full: Mapping[str, Tensor], origin: str) -> None:
    """Load all of a state dict; errors as for `load_compatible`."""
    check_weights(net.state_dict(), full, origin)
    net.load_state_dict(full)


def check_weights(own: Mapping[str, Tensor], given: Mapping[str, Tensor], origin: str) -> None:
    """Refuse tensors from ``origin`` (a name for messages) that are not those of a state dict.

    Raises:
        ValueError: naming missing and unexpected tensors, and those of another shape.
    """
    faults = []
    if missing := [name for name in own if name not in given]:
        faults.append(f"missing {first_few(missing)}")
    if unexpected := [name for name in given if name not in own]:
        faults.append(f"unexpected {first_few(unexpected)}")
    if other := [name for name in own if name in given and given[name].shape != own[name].shape]:
        shapes = (f"{name} is {list(given[name].shape)}, not {list(own[name].shape)}" for name in other)
        faults.append(f"shape of {first_few(shapes)}")
    if faults:
        raise ValueError(f"{origin} does not fit the backbone: {'; '.join(faults)}")
