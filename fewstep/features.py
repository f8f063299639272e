"""Features of images for the metrics: torch-fidelity's extractors, and our own among them.

The only module that knows torch_fidelity. The demo's classifier is registered there as
`conv-classifier`, so that scoring is one path for it and for Inception.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.utils import create_feature_extractor

from .checkpoint import load_network
from .config import ConfigError
from .config.settings import Backbone, Protocol
from .core.frechet import GaussianStats
from .data.records import read_record
from .files import sha256

OURS = "conv-classifier"


class ClassifierFeatures(FeatureExtractorBase):
    """A ConvClassifier of this workflow behind torch-fidelity's interface.

    uint8 images (n, C, H, W) to `features` (n, F) and `logits` (n, classes).
    """

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any
    ):
        super().__init__(name, features_list)
        if feature_extractor_weights_path is None:
            raise ValueError(f"{name} needs feature_extractor_weights_path")
        self._net, card = load_network(feature_extractor_weights_path)
        self._shape = tuple(card["backbone"]["shape"])

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        if input.shape[1:] != self._shape:
            raise ValueError(f"{self.name} takes images {self._shape}, not {tuple(input.shape[1:])}")
        features = self._net.features(input.float() / 127.5 - 1)
        values = {"features": features, "logits": self._net.head(features)}
        return tuple(values[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)


register_feature_extractor(OURS, ClassifierFeatures)


class Extractor:
    """The network of a protocol, from bytes to the features it compares."""

    def __init__(self, protocol: Protocol, weights: Path, backbone: Backbone | None):
        self.protocol = protocol
        self.layers = [protocol.features, *([protocol.logits] if protocol.logits else [])]
        if backbone is not None:
            load_network(weights, backbone)
            path = weights
        else:
            path = asset_file(weights, protocol.weights.file)
            refuse_objects(path)
        self.sha256 = sha256(path)
        self._cuda = torch.cuda.is_available()
        self._net = create_feature_extractor(
            protocol.extractor,
            self.layers,
            cuda=self._cuda,
            feature_extractor_weights_path=str(path),
            verbose=False,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 images (n, C, H, W) to layer name -> (n, F), on the CPU."""
        images = images.cuda() if self._cuda else images
        return {name: value.cpu() for name, value in zip(self.layers, self._net(images), strict=True)}

    def stats(self, batches: Iterable[Tensor]) -> tuple[GaussianStats, list[Tensor]]:
        """Streaming Gaussian of the features, and the logits if the protocol wants them."""
        gaussian: GaussianStats | None = None
        logits = []
        for images in batches:
            values = self(images)
            features = values[self.protocol.features]
            gaussian = gaussian or GaussianStats(features.shape[1])
            gaussian.update(features)
            if self.protocol.logits:
                logits.append(values[self.protocol.logits])
        if gaussian is None:
            raise ValueError("no images to take features of")
        return gaussian, logits


def asset_file(record: Path, name: str | None) -> Path:
    """A file of a fetched asset, its checksum compared with the record's.

    Raises:
        ConfigError: the record has no such file, or its bytes have changed.
    """
    files = {file.name: file for file in read_record(record).body.files}
    if name not in files:
        raise ConfigError(f"{record}: has no file {name!r}; it has {sorted(files)}")
    path = record.with_suffix("") / name
    if sha256(path) != files[name].sha256:
        raise ConfigError(f"{path}: differs from {record}; fetch the asset again")
    return path


def refuse_objects(path: Path) -> None:
    """Refuse a torch file that holds more than tensors: torch_fidelity unpickles whatever it is given.

    Raises:
        ValueError: naming the file.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: not a torch file of plain tensors: {reason}") from None


def inception_score(logits: list[Tensor]) -> float:
    """Inception score over ten splits, as torch-fidelity computes it (shuffled, seed 2020)."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    result = isc_features_to_metric(torch.cat(logits), splits=10, shuffle=True, rng_seed=2020)
    return float(result["inception_score_mean"])


def describe(protocol: Protocol) -> dict[str, Any]:
    """The protocol as it goes beside a number."""
    return json.loads(protocol.model_dump_json())
