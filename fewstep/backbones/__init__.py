"""The networks, built from their configuration. Importing this package needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.networks import FlowNetwork, Mlp, UNet
from ..config.settings import Backbone, ConvAutoencoder, LightningDiT

if TYPE_CHECKING:
    from torch import nn


def build(spec: Backbone) -> nn.Module:
    """The freshly initialised network of ``spec``.

    Initial weights are drawn from torch's global generator: seed it first. Under
    ``torch.device("meta")`` nothing is allocated or drawn.

    Raises:
        ValueError: sizes that do not fit together, naming them.
    """
    if isinstance(spec, LightningDiT):
        from . import lightningdit, noise

        return (noise.NoiseDiT if spec.predicts == "noise" else lightningdit.LightningDiT)(spec)
    if isinstance(spec, Mlp):
        from . import mlp

        return mlp.Mlp(spec)
    if isinstance(spec, UNet):
        from . import unet

        return unet.UNet(spec)
    from . import convnets

    if isinstance(spec, ConvAutoencoder):
        return convnets.ConvAutoencoder(spec)
    return convnets.ConvClassifier(spec)


def null_label(spec: FlowNetwork) -> int:
    """Label of the unconditional class: the row after the last class of the label table."""
    return spec.classes
