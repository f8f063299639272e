"""Bytes to features and their statistics, and the share of the extractor."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..backbones import build
from ..backbones.model_file import save_model
from ..config.settings import Backbone, ConvClassifier, Protocol, Weights
from ..features import Extractor, Features
from ..images import to_uint8
from .cases import DEVICE, Case, Clock
from .models import images


def cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Bytes to features and their statistics, and the share of the extractor."""
    protocol = Protocol(
        images=given.batch,
        labels="random",
        extractor="conv-classifier",
        features="features",
        logits="logits",
        weights=Weights(method="bench"),
        reference_latents="bench",
    )
    backbone: Backbone = ConvClassifier(kind="conv-classifier", shape=[1, 8, 8], classes=10, features=64)
    path = folder / "extractor.safetensors"
    save_model(path, build(backbone).state_dict(), backbone, {})
    extractor = Extractor(protocol, path, backbone, DEVICE)
    pictures = to_uint8(images(given.batch, 1, 8).cpu(), "round")
    values = {"features": torch.randn(given.batch, 2048)}
    wide = protocol.model_copy(update={"metrics": ["fid"]})
    clock = Clock()

    def narrow_call() -> None:
        features = Features(protocol, DEVICE)
        with clock():
            found = extractor(pictures)
        features.add(found)

    statistics = Features(wide, DEVICE)
    return [
        Case("conv-classifier 1x8x8", narrow_call, given.batch, "images", clock, "in the extractor"),
        Case("statistics of 2048 features", lambda: statistics.add(values), given.batch, "images"),
    ]
