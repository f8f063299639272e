"""What is valid part by part and yet cannot work together, refused before any job."""

from __future__ import annotations

from typing import Any

from ..config.base import ConfigError, require_known
from ..config.load import Config, check_file
from ..config.methods import Published
from ..config.networks import FlowNetwork
from ..config.objectives import LossParams, Problems
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


def check_loss(
    loss: LossParams, train: Train, backbone: Backbone, teacher: LossParams | None, where: str
) -> None:
    """Refuse a loss whose needs schedule, network or teacher do not meet.

    ``teacher`` is the loss of the method's teacher, None without one; ``where`` names file and key.
    """
    problems = [*_network_problems(loss, backbone), *loss.check(train, backbone, teacher)]
    if problems:
        lines = (f"{where}.{key}: {message}" if key else f"{where}: {message}" for key, message in problems)
        raise ConfigError("\n".join(lines))


def _network_problems(loss: LossParams, backbone: Backbone) -> Problems:
    if not isinstance(backbone, FlowNetwork):
        return
    if backbone.outputs not in loss.outputs:
        yield "", f"needs a backbone with outputs: {' or '.join(map(str, loss.outputs))}"
    if loss.target_time not in (None, backbone.target_time):
        yield "", f"needs a backbone with target_time: {str(loss.target_time).lower()}"


def check_jump(backbone: Backbone, sampler: str, where: str) -> None:
    """Refuse jumps to inner times for a network whose flow map, if it has one, only reaches the data."""
    if not (isinstance(backbone, FlowNetwork) and backbone.target_time):
        raise ConfigError(
            f"{where}: sampler {sampler!r} jumps to inner times, which needs a backbone with "
            "target_time: true; use kind: euler or cm"
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
