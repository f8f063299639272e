"""A student that is adapters of SD3, as files for diffusers.

Two forms, both relative to the base that users have:

* Two files hold the whole student, with any target time. The LoRA file is its adapters. The other,
  target_embedder.safetensors, holds the embedding of the target time and, of a student whose base embeds time
  anew (backbones/reembedding.py), the smooth embedder too, which takes the place of SD3's own; `load_student`
  puts both into the transformer of the base. Nothing is approximated.
* One LoRA file is the student at target time 1, the data: all that consistency sampling asks for. The
  target's embedding then is one vector, a bias of the time embedder's second layer, and plain diffusers loads
  the file. A time that is embedded anew is fitted by adapters of SD3's own embedder (time_adapters.py); how
  far they are off stands in the file's card. Adapters of other layers do not change with the time embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor

from ..backbones.model_file import load_model
from ..backbones.reembedding import read_embedder, sinusoids
from ..common.cli import first_few
from ..common.files import sha256
from ..config.backbones import SD3_TIMESTEPS, Sd3
from ..config.base import digest
from ..config.specs import ExportSpec
from .lora_files import EMBEDDING, PREFIX, save_lora, save_time_embedding
from .time_adapters import TimeAdapters, fit_time_adapters

TIME_LAYERS = ("linear_1", "linear_2")
EMBEDDER = f"{EMBEDDING}timestep_embedder."
TARGET = f"{EMBEDDING}target_embedder."


@dataclass(frozen=True)
class Files:
    """Where the three files go."""

    lora: Path
    target_embedder: Path
    one_file: Path


@dataclass(frozen=True)
class Base:
    """What an export reads of the network below the adapters."""

    path: Path
    sha256: str
    embedder: TimestepEmbedding
    card: dict[str, Any]

    @classmethod
    def read(cls, path: Path, wanted: str | None, named_by: str) -> Base:
        """Read it from a model file.

        Args:
            wanted: SHA-256 of the file.
            named_by: where that stands, for the message.

        Raises:
            ValueError: another file, or damage.
        """
        if (found := sha256(path)) != wanted:
            raise ValueError(f"{path}: has sha256 {found}, but {named_by} has {wanted}")
        tensors, card = load_model(path)
        return cls(path, found, read_embedder(tensors), card)

    @property
    def time_scale(self) -> float:
        return float(self.card["backbone"]["time_scale"])


def export_student(spec: ExportSpec, model: Path, base: Path, origin: Path | None, files: Files) -> None:
    """Write a student's three files.

    Args:
        model: the student.
        base: the model file that it belongs to.
        origin: the model file that ``base`` was made from, where that embeds time anew.

    Raises:
        ValueError: files that do not belong together, a base that plain diffusers does not know, or a time
            embedding that cannot be fitted within ``spec.limit``.
    """
    adapters, embedded, card = read_student(spec, model)
    below = Base.read(base, card.get("base"), f"the base of {model}")
    own = below if below.time_scale == SD3_TIMESTEPS else _origin(below, origin)
    lora = spec.backbone.lora
    assert lora is not None
    about = {
        "method": spec.method,
        "variant": spec.variant,
        "seed": card.get("seed"),
        "student": sha256(model),
        "spec": card.get("spec"),
        "export": digest(spec),
        "base": {"sha256": own.sha256, "status": own.card["status"], "source": own.card.get("source")},
        "guidance": spec.guidance and spec.guidance.model_dump(mode="json"),
        "licence": spec.licence,
        "lora": lora.model_dump(mode="json"),
    }
    two = {**about, "files": 2, "time_scale": spec.backbone.time_scale}
    times = dict(embedded)
    if own is not below:
        times |= {f"timestep_embedder.{name}": value for name, value in below.embedder.state_dict().items()}
    one, fit = one_file_adapters(spec.backbone, adapters, embedded, below, own)
    if fit is not None and not fit.worst <= spec.limit:
        raise ValueError(
            f"{model}: limit: adapters of rank {lora.rank} of SD3's own time embedding are {fit.worst:.3g} "
            f"(relative) off the student's, above {spec.limit:g}; train with a larger backbone.lora.rank"
        )
    learned = spec.guidance.scale if spec.guidance else 1.0
    use = "guidance_scale=1.0, as guidance is inside" if learned != 1 else "any guidance_scale"
    single = {
        **about,
        "files": 1,
        "use": f"FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True); of n steps "
        f"sigmas=[1 - i / n for i in range(n)]; {use}",
        "time": fit and {"residual": fit.residual, "at_steps": fit.at_steps},
    }
    targets = [*lora.targets]
    for name in TIME_LAYERS:
        layer = f"{EMBEDDER}{name}"
        if f"{layer}.lora_A.weight" in one and not any(f".{layer}".endswith(f".{end}") for end in targets):
            targets.append(f"timestep_embedder.{name}")
    save_lora(files.lora, adapters, lora, bias=False, card=two)
    save_time_embedding(files.target_embedder, times, two)
    save_lora(files.one_file, one, lora.model_copy(update={"targets": targets}), bias=True, card=single)
    if learned != 1:
        print(f"warning: guidance of scale {learned:g} is inside: call diffusers with guidance_scale=1.0")
    if fit is not None:
        shown = ", ".join(f"{steps}: {error:.2g}" for steps, error in fit.at_steps.items())
        print(f"time embedding in plain diffusers: relative error {fit.residual:.2g}; by steps, {shown}")


def read_student(
    spec: ExportSpec, model: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Adapters by their names below the transformer, target embedding by its below time_text_embed, and card.

    Raises:
        ValueError: another backbone than the spec's, one without adapters, or tensors that are neither.
    """
    tensors, card = load_model(model)
    asked = spec.backbone.model_dump(mode="json")
    if card["backbone"] != asked:
        keys = [key for key in asked if card["backbone"].get(key) != asked[key]]
        raise ValueError(f"{model}: backbone is another than the spec's: {first_few(keys) or 'kind'}")
    if spec.backbone.lora is None:
        raise ValueError(f"{model}: backbone.lora: none; a student without adapters is no LoRA file")
    adapters, embedded, others = dict[str, Tensor](), dict[str, Tensor](), list[str]()
    for name, value in tensors.items():
        inner = name.removeprefix(PREFIX)
        if ".lora_A." in inner or ".lora_B." in inner:
            adapters[inner.replace(".default.", ".")] = value
        elif inner.startswith(TARGET):
            embedded[inner.removeprefix(EMBEDDING)] = value
        else:
            others.append(name)
    if others or not adapters:
        raise ValueError(f"{model}: trained weights beside adapters and target time: {first_few(others)}")
    return adapters, embedded, card


def _origin(base: Base, origin: Path | None) -> Base:
    """The network from which ``base`` differs in its time embedding alone.

    Raises:
        ValueError: there is none, or it is another.
    """
    if "origin" not in base.card:
        raise ValueError(
            f"{base.path}: origin: not in its card: it was trained with time_scale {base.time_scale:g}, so "
            "that its weights are nobody's base in diffusers; teach by the model of fewstep.reembed itself"
        )
    if origin is None:
        raise ValueError(f"{base.path}: its time is embedded anew: give the model it was made from, --origin")
    own = Base.read(origin, base.card["origin"]["sha256"], f"the origin of {base.path}")
    if own.time_scale != SD3_TIMESTEPS:
        raise ValueError(f"{origin}: time_scale {own.time_scale:g} is not SD3's own, {SD3_TIMESTEPS:g}")
    return own


def one_file_adapters(
    backbone: Sd3, adapters: Mapping[str, Tensor], embedded: Mapping[str, Tensor], base: Base, own: Base
) -> tuple[dict[str, Tensor], TimeAdapters | None]:
    """Adapters with biases that are the student at target time 1, and their fit where one was needed.

    Args:
        adapters: the student's own.
        embedded: its embedding of the target time; empty if it has none.
        base: the network that the adapters belong to.
        own: the one that plain diffusers has.
    """
    assert backbone.lora is not None
    rank, scaling = backbone.lora.rank, backbone.lora.scaling
    shift = _target_embedding(embedded, base)
    made = dict(adapters)
    fit = None
    if own is base:
        layer = f"{EMBEDDER}{TIME_LAYERS[-1]}"
        weight = base.embedder.linear_2.weight
        made.setdefault(f"{layer}.lora_A.weight", weight.new_zeros(rank, weight.shape[1]))
        made.setdefault(f"{layer}.lora_B.weight", weight.new_zeros(weight.shape[0], rank))
        made[f"{layer}.lora_B.bias"] = shift / scaling
    else:
        student = _merged(base.embedder, adapters, scaling)
        fit = fit_time_adapters(own.embedder, own.time_scale, student, base.time_scale, shift, rank, scaling)
        made |= {f"{EMBEDDER}{name}": value for name, value in fit.tensors.items()}
    for name, value in list(made.items()):
        if name.endswith("lora_B.weight"):
            made.setdefault(name.replace("weight", "bias"), value.new_zeros(value.shape[0]))
    return made, fit


def _target_embedding(embedded: Mapping[str, Tensor], base: Base) -> Tensor:
    """What the target time 1 adds to the embedding, (width,)."""
    layer = base.embedder
    if not embedded:
        return torch.zeros(layer.linear_2.out_features)
    target = TimestepEmbedding(layer.linear_1.in_features, layer.linear_2.out_features)
    target.load_state_dict({name.partition(".")[2]: value for name, value in embedded.items()})
    with torch.no_grad():
        result: Tensor = target(sinusoids(layer.linear_1.in_features, base.time_scale, torch.ones(1)))[0]
    return result


def _merged(embedder: TimestepEmbedding, adapters: Mapping[str, Tensor], scaling: float) -> TimestepEmbedding:
    """The embedder with its adapters, where it has any, in its weights."""
    state = dict(embedder.state_dict())
    for name in TIME_LAYERS:
        down, up = (adapters.get(f"{EMBEDDER}{name}.lora_{side}.weight") for side in "AB")
        if down is not None and up is not None:
            state[f"{name}.weight"] = state[f"{name}.weight"] + scaling * up @ down
    merged = TimestepEmbedding(embedder.linear_1.in_features, embedder.linear_2.out_features)
    merged.load_state_dict(state)
    return merged.requires_grad_(False)
