"""What is valid part by part and yet cannot work together, refused before any job."""

from __future__ import annotations

from typing import Any

from ..config.base import ConfigError, require_known
from ..config.load import Config, check_file
from ..config.losses import (
    AYFLoss,
    CTMLoss,
    DECMLoss,
    DuMoLoss,
    FACMLoss,
    FlowMapLoss,
    FlowMatchingLoss,
    IMeanFlowLoss,
    IMMLoss,
    Loss,
    MeanFlowLoss,
    RecursiveTerms,
    SCMLoss,
    ShortcutLoss,
    TCMLoss,
)
from ..config.methods import Published
from ..config.networks import FlowNetwork
from ..config.settings import Backbone, LightningDiT, Recipe, Train


def check_backbone(config: Config, name: str, latents: str) -> None:
    """Refuse a network made for other data than it is to be trained on."""
    parts = config.parts
    backbone, entry = parts.backbones[name], parts.latents[latents]
    wanted: dict[str, Any] = {
        "shape": parts.tokenizers[entry.tokenizer].shape,
        "classes": parts.datasets[entry.dataset].classes,
    }
    for key, value in wanted.items():
        found = getattr(backbone, key, value)
        if found != value:
            raise ConfigError(
                f"{config.root.files.settings}: backbones.{name}.{key}: {found}, "
                f"but latents {latents} have {value}"
            )


def check_published(config: Config, weights: Published, recipe: Recipe, where: str) -> None:
    """Refuse weights of other latents: such a network trains and samples without complaint, and badly.

    ``where`` names file and key.
    """
    file, _, key = where.partition(": ")
    parts = config.parts
    check_file(weights.asset, weights.file, config.assets, file, key)
    require_known(weights.tokenizer, parts.tokenizers, file, f"{key}.tokenizer")
    if weights.sampler is not None:
        require_known(weights.sampler, parts.samplers, file, f"{key}.sampler")
    ours = parts.latents[recipe.latents].tokenizer
    if weights.tokenizer != ours:
        raise ConfigError(
            f"{where}.tokenizer: {weights.asset} was trained on latents of {weights.tokenizer}, but the "
            f"recipe's come from {ours}; choose weights and a recipe that agree"
        )


def check_schedule(loss: Loss, train: Train, where: str) -> None:
    """Refuse schedules that would never take effect, and batches that a loss cannot use."""
    if isinstance(loss, DECMLoss) and loss.n2n and loss.freq > train.steps:
        raise ConfigError(f"{where}.freq: {loss.freq} is beyond the {train.steps} training steps")
    if isinstance(loss, SCMLoss | AYFLoss) and loss.warmup > train.steps:
        raise ConfigError(f"{where}.warmup: {loss.warmup} is beyond the {train.steps} training steps")
    if isinstance(loss, IMMLoss) and train.global_batch_size % loss.particles:
        raise ConfigError(
            f"{where}.particles: train.global_batch_size {train.global_batch_size} does not divide into "
            f"groups of {loss.particles}"
        )


def check_times(loss: Loss, backbone: Backbone, where: str) -> None:
    """Refuse a loss over two times for a network that knows one."""
    two = isinstance(loss, FlowMapLoss | DECMLoss | MeanFlowLoss | IMMLoss | ShortcutLoss | CTMLoss) or (
        isinstance(loss, FACMLoss) and loss.anchor == "target"
    )
    two = two or isinstance(loss, RecursiveTerms)
    if two and isinstance(backbone, FlowNetwork) and not backbone.target_time:
        raise ConfigError(f"{where}: needs a backbone with target_time: true")


def check_heads(loss: Loss, backbone: Backbone, where: str) -> None:
    """Refuse a network whose outputs are not the loss's: two and one time for DuMo, one for most."""
    if not isinstance(backbone, FlowNetwork):
        return
    two = isinstance(loss, DuMoLoss)
    if two and (backbone.outputs != 2 or backbone.target_time):
        raise ConfigError(f"{where}: needs a backbone with outputs: 2 and target_time: false")
    if not (two or isinstance(loss, IMeanFlowLoss)) and backbone.outputs == 2:
        raise ConfigError(f"{where}: {loss.name} trains one output; choose a backbone with outputs: 1")


def check_jump(backbone: Backbone, sampler: str, where: str) -> None:
    """Refuse jumps to inner times for a network whose flow map, if it has one, only reaches the data."""
    if not (isinstance(backbone, FlowNetwork) and backbone.target_time):
        raise ConfigError(
            f"{where}: sampler {sampler!r} jumps to inner times, which a network without target_time has "
            "not; use kind: euler, or cm"
        )


def check_prediction(backbone: Backbone, adopted: bool, teacher: Backbone | None, where: str) -> None:
    """Refuse to train, or to start from, a network that predicts noise.

    Its velocity (x - e) / t at t = 0 holds the network's errors 157 times enlarged, and there few-step
    generation starts; a student that predicts velocities could not start from such weights either.
    """
    for network, doing in ((None if adopted else backbone, "trained"), (teacher, "a teacher")):
        if isinstance(network, LightningDiT) and network.predicts == "noise":
            raise ConfigError(
                f"{where}: a backbone with predicts: noise can be adopted and sampled from, not be {doing}"
            )


def check_stages(loss: Loss, teacher: Loss | None, where: str) -> None:
    """Refuse the second stage of truncated consistency without a first, whose map it continues."""
    if not isinstance(loss, TCMLoss) or loss.boundary is None:
        return
    if not isinstance(teacher, TCMLoss) or teacher.boundary is not None:
        raise ConfigError(
            f"{where}.boundary: needs a first stage: name as teacher a method with loss tcm and no boundary"
        )


def check_reference(loss: Loss, taught: bool, where: str) -> None:
    """Refuse guidance by a teacher that a method has not."""
    enhance = getattr(loss, "enhance", None)
    if enhance is not None and enhance.reference == "teacher" and not taught:
        raise ConfigError(
            f"{where}.enhance.reference: teacher, but teacher: false; say own, null the whole of it, "
            "or let a teacher teach"
        )


def check_anchor(loss: Loss, teacher: Loss, name: str, where: str) -> None:
    """Refuse an anchor on times at which the teacher, where the student starts, was never trained."""
    seen = isinstance(teacher, FlowMatchingLoss) and teacher.expanded
    if isinstance(loss, FACMLoss) and loss.anchor == "expanded" and not seen:
        raise ConfigError(
            f"{where}.anchor: expanded needs a teacher with loss.expanded: true, which {name} has not; "
            "choose anchor: target, or a recipe with another teacher"
        )
