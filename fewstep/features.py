"""Features of images and the metrics made of them: torch-fidelity's, with our extractor among its own.

The only module that knows torch_fidelity. The demo's classifier is registered there as
`conv-classifier`, so that scoring is one path for it and for Inception.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from .checkpoint import load_network
from .config import ConfigError
from .config.settings import Backbone, KernelDistance, Protocol
from .core.frechet import GaussianStats
from .data.records import read_record
from .files import sha256

OURS = "conv-classifier"
IDENTITY = "identity"
"""Data that are not images, as they are."""
DISTANCES_AT_ONCE = 2_000
"""Rows of the distance matrix of precision and recall that are in memory: 400 MB at 50,000 images."""


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

    def __init__(
        self,
        protocol: Protocol,
        weights: Path | None,
        backbone: Backbone | None,
        device: torch.device | str = "cpu",
    ):
        self.protocol = protocol
        self.layers = [protocol.features]
        if "is" in protocol.metrics:
            assert protocol.logits is not None
            self.layers.append(protocol.logits)
        self.sha256: str | None = None
        """Of the weights; None where there are none."""
        self._cuda = torch.device(device).type == "cuda"
        if protocol.extractor == IDENTITY:
            return
        if weights is None or protocol.weights is None:
            raise ConfigError(f"extractor {protocol.extractor} needs a weights file; pass --extractor")
        if backbone is not None:
            load_network(weights, backbone)
            path = weights
        else:
            path = asset_file(weights, protocol.weights.file)
            refuse_objects(path)
        self.sha256 = sha256(path)
        self._net = create_feature_extractor(
            protocol.extractor,
            self.layers,
            cuda=self._cuda,
            feature_extractor_weights_path=str(path),
            verbose=False,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 images (n, C, H, W) to layer name -> float32 (n, F), on the CPU.

        `identity` takes float32 data (n, C, H, W) and flattens them.

        Raises:
            ValueError: data of another type, a layer that is not a vector for each image, or not finite.
        """
        wanted = torch.float32 if self.protocol.extractor == IDENTITY else torch.uint8
        if images.dtype != wanted:
            raise ValueError(f"images are {images.dtype}, not {wanted}")
        if self.protocol.extractor == IDENTITY:
            found: Sequence[Tensor] = [images.flatten(1)]
        else:
            found = self._net(images.cuda() if self._cuda else images)
        values = {name: value.cpu() for name, value in zip(self.layers, found, strict=True)}
        for name, value in values.items():
            if value.dim() != 2 or len(value) != len(images) or value.dtype != torch.float32:
                what = f"{value.dtype} {tuple(value.shape)}"
                raise ValueError(f"{self.protocol.extractor}: layer {name} is {what}, not float32 (n, F)")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{self.protocol.extractor}: layer {name} holds NaN or infinity")
        return values


class Features:
    """One side of a comparison, taken in batch by batch, in the images' order.

    Mean and covariance are streamed in float64 on ``device``. Features and logits themselves are kept
    only for metrics that need them (50,000 Inception features: 0.4 GB).
    """

    def __init__(self, protocol: Protocol, device: torch.device | str = "cpu"):
        self._protocol = protocol
        self._device = device
        self._kept: list[Tensor] = []
        self._logits: list[Tensor] = []
        self.gaussian: GaussianStats | None = None

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in a batch as an `Extractor` returns it."""
        features = values[self._protocol.features]
        if self.gaussian is None:
            self.gaussian = GaussianStats(features.shape[1], self._device)
        self.gaussian.update(features)
        if self._protocol.compares_images:
            self._kept.append(features)
        if "is" in self._protocol.metrics:
            assert self._protocol.logits is not None
            self._logits.append(values[self._protocol.logits])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and covariance (F, F), float64, on the CPU."""
        if self.gaussian is None:
            raise ValueError("no images to take features of")
        return self.gaussian.mean.cpu(), self.gaussian.cov.cpu()

    @property
    def kept(self) -> Tensor:
        """Features (n, F), if the protocol compares images."""
        return torch.cat(self._kept)

    @property
    def logits(self) -> Tensor:
        """Logits (n, classes), if the protocol asks for the Inception score."""
        return torch.cat(self._logits)


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


def inception_score(logits: Tensor) -> float:
    """Inception score of logits (n, classes) over ten splits (shuffled, seed 2020)."""
    result = isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    return float(result["inception_score_mean"])


def kernel_distance(ours: Tensor, real: Tensor, options: KernelDistance) -> float:
    """KID of features (n, F) and (m, F): mean unbiased MMD^2 with a cubic kernel (subsets by seed 2020).

    Raises:
        ValueError: a side has fewer images than a subset.
    """
    if min(len(ours), len(real)) < options.size:
        raise ValueError(
            f"kid.size: {options.size}, but there are {len(ours)} images and {len(real)} real ones"
        )
    result = kid_features_to_metric(
        ours, real, kid_subsets=options.subsets, kid_subset_size=options.size, rng_seed=2020, verbose=False
    )
    return float(result["kernel_inception_distance_mean"])


def precision_recall(ours: Tensor, real: Tensor) -> dict[str, float]:
    """Share of images in the manifold of the real ones, and the reverse (arXiv 1904.06991).

    Features (n, F) and (m, F); a manifold is the union of balls to the third neighbour.
    """
    result = prc_features_to_metric(
        ours, real, prc_neighborhood=3, prc_batch_size=DISTANCES_AT_ONCE, save_cpu_ram=True, verbose=False
    )
    return {name: float(result[name]) for name in ("precision", "recall")}


def describe(protocol: Protocol) -> dict[str, Any]:
    """The protocol as it goes beside a number."""
    return json.loads(protocol.model_dump_json())
