"""Feature extractors and metrics of torch-fidelity.

No other module imports torch_fidelity, and this one is imported where it is used: it takes seconds. The
networks of the demo are registered there, so that they and Inception are used alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from ..backbones.model_file import load_network
from ..common.tensor_files import load_torch
from ..config.settings import EXTRACTORS, KernelDistance

DISTANCE_ROWS = 2_000
"""Rows of the distance matrix of precision and recall that are in memory: 400 MB at 50,000 images."""


class TrainedFeatures(FeatureExtractorBase):
    """A network of this workflow behind torch-fidelity's interface.

    uint8 images (n, C, H, W) to the vectors (n, F) that `vectors` makes.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any):
        super().__init__(name, features_list)
        self._net, card = load_network(feature_extractor_weights_path)
        self._shape = tuple(card["backbone"]["shape"])

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        if input.shape[1:] != self._shape:
            raise ValueError(f"{self.name} takes images {self._shape}, not {tuple(input.shape[1:])}")
        values = self.vectors(input.float() / 127.5 - 1)
        return tuple(values[name] for name in self.features_list)

    def vectors(self, images: Tensor) -> dict[str, Tensor]:
        """Layer -> vectors (n, F) of images (n, C, H, W) in [-1, 1]."""
        raise NotImplementedError

    @classmethod
    def get_default_feature_layer_for_metric(cls, metric: str) -> str:
        layers: tuple[str, ...] = cls.get_provided_features_list()
        return layers[-1 if metric == "isc" else 0]


class ClassifierFeatures(TrainedFeatures):
    """A ConvClassifier: `features`, and `logits` (n, classes)."""

    def vectors(self, images: Tensor) -> dict[str, Tensor]:
        features = self._net.features(images)
        return {"features": features, "logits": self._net.head(features)}

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return EXTRACTORS["conv-classifier"]


class ClipFeatures(TrainedFeatures):
    """A CLIP: `embedding`, of length 1."""

    def vectors(self, images: Tensor) -> dict[str, Tensor]:
        return {"embedding": self._net.embed_images(images)}

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return EXTRACTORS["clip"]


TRAINED = {"conv-classifier": ClassifierFeatures, "clip": ClipFeatures}
for _name, _class in TRAINED.items():
    register_feature_extractor(_name, _class)


def create_extractor(name: str, layers: Sequence[str], weights: Path, cuda: bool) -> FeatureExtractorBase:
    """A network that makes the ``layers`` of uint8 images (n, C, H, W), with the weights of a file.

    Raises:
        ValueError: published weights that hold more than tensors.
    """
    if name not in TRAINED:
        load_torch(weights)  # refuses objects, which torch_fidelity would run
    return create_feature_extractor(
        name, list(layers), cuda=cuda, feature_extractor_weights_path=str(weights), verbose=False
    )


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
        ours, real, prc_neighborhood=3, prc_batch_size=DISTANCE_ROWS, save_cpu_ram=True, verbose=False
    )
    return {name: float(result[name]) for name in ("precision", "recall")}
