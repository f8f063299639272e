"""The networks, built from their configuration. Importing this package needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..config.backbones import Backbone, FlowNetwork

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    "lightningdit": ("lightningdit", "LightningDiT"),
    "noise": ("lightningdit", "NoiseDiT"),
    "pyramid": ("lightningdit", "PyramidDiT"),
    "mlp": ("mlp", "Mlp"),
    "unet": ("unet", "UNet"),
    "get": ("get", "Get"),
    "imf": ("imf", "Imf"),
    "sd3": ("sd3", "Sd3"),
    "kl-autoencoder": ("kl_autoencoder", "KlAutoencoder"),
    "clip": ("clip", "Clip"),
    "conv-autoencoder": ("convnets", "ConvAutoencoder"),
    "conv-classifier": ("convnets", "ConvClassifier"),
}
"""Module and class by the kind of the spec, or by what its network predicts or is given. Loaded when built,
so that a training depends on the source of its own network alone."""


def build(spec: Backbone) -> nn.Module:
    """The freshly initialised network of ``spec``.

    Initial weights are drawn from torch's global generator: seed it first. Under
    ``torch.device("meta")`` nothing is allocated or drawn.

    Raises:
        ValueError: sizes that do not fit together, naming them.
    """
    kind: str = "noise" if getattr(spec, "predicts", "velocity") == "noise" else spec.kind
    if isinstance(spec, FlowNetwork) and spec.scale_count > 1:
        kind = "pyramid"
    module, name = NETWORKS[kind]
    network: nn.Module = getattr(import_module(f".{module}", __package__), name)(spec)
    return network


def use_text(net: nn.Module, store: Any) -> None:
    """Let a bare network whose conditions are captions look them up in ``store`` (data/text_store.py).

    Raises:
        ValueError: its conditions are no captions, or those of the store do not fit it.
    """
    if not hasattr(net, "text"):
        raise ValueError(f"--text: {type(net).__name__} takes no captions")
    net.text = store
