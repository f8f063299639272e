"""Features of images by a protocol's extractor, and what its metrics need of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..backbones.model_file import load_network
from ..common.files import sha256
from ..config import ConfigError
from ..config.backbones import Backbone
from ..config.settings import Protocol
from ..core.memory import FittingBatches, place
from ..data.asset_files import read_record
from .frechet import GaussianStats

ROWS = 250
"""Most images that go through an extractor at once."""


class Extractor:
    """The network of a protocol, from images to the features that it compares.

    Args:
        channels_last: memory format of a network's convolutions; features differ by rounding.

    Raises:
        ConfigError: the protocol's extractor needs weights, and none are given.
        ValueError: the weights are of another network than ``backbone``.
    """

    def __init__(
        self,
        protocol: Protocol,
        weights: Path | None,
        backbone: Backbone | None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ):
        self.protocol = protocol
        logits = protocol.logits if "is" in protocol.metrics else None
        self.layers = [protocol.features, *([logits] if logits else [])]
        self.sha256: str | None = None
        """Of the weights; None where there are none."""
        self._device = torch.device(device)
        self._fitting = FittingBatches("features", ROWS)
        if protocol.own_features:
            return
        if protocol.extractor == "pixels":
            self._net: Callable[[Tensor], tuple[Tensor, ...]] = partial(averaged, side=int(protocol.features))
            return
        if weights is not None and protocol.weights is not None and protocol.extractor == "dinov2":
            path, self.sha256 = read_record(weights).verified_with_folder(protocol.weights.file)
            from .dinov2 import DinoFeatures  # takes seconds to import

            self._net = DinoFeatures(path.parent, self._device)
            return
        if weights is None or protocol.weights is None:
            raise ConfigError(f"extractor {protocol.extractor} needs a weights file; pass --extractor")
        if backbone is not None:
            load_network(weights, backbone)
            path, self.sha256 = weights, sha256(weights)
        else:
            path, self.sha256 = read_record(weights).verified(protocol.weights.file)
        from . import fidelity  # takes seconds to import

        cuda = self._device.type == "cuda"
        net = fidelity.create_extractor(protocol.extractor, self.layers, path, cuda)
        if channels_last:
            net.to(memory_format=torch.channels_last)
        self._net = net

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Layer name -> features, float32 (n, F), on the device, of uint8 images (n, C, H, W) on the host.

        The extractor `identity` takes float32 data (n, C, H, W) and flattens them.

        Raises:
            ValueError: data of another type, a layer that is not a vector for each image, or not finite.
        """
        own = self.protocol.own_features
        wanted = torch.float32 if own else torch.uint8
        if images.dtype != wanted:
            raise ValueError(f"images are {images.dtype}, not {wanted}")
        given = place(images, self._device)
        parts = [(given.flatten(1),)] if own else self._parts(given)
        values = dict(zip(self.layers, map(torch.cat, zip(*parts, strict=True)), strict=True))
        for name, value in values.items():
            if value.dim() != 2 or len(value) != len(images) or value.dtype != torch.float32:
                what = f"{value.dtype} {tuple(value.shape)}"
                raise ValueError(f"{self.protocol.extractor}: layer {name} is {what}, not float32 (n, F)")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{self.protocol.extractor}: layer {name} holds NaN or infinity")
        return values

    def _parts(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        return self._fitting(lambda part: self._net(images[part.start : part.stop]), range(len(images)))


def averaged(images: Tensor, side: int) -> tuple[Tensor]:
    """Means (n, C side^2), in [0, 1], over ``side`` x ``side`` parts of uint8 images (n, C, H, W).

    They see colours and coarse shapes: a blurred image and a sharp one are alike to them.
    """
    return (adaptive_avg_pool2d(images.float() / 255, side).flatten(1),)


class FeatureCollector:
    """Features of one side of a comparison, taken in batch by batch, in the images' order.

    Mean and covariance are streamed in float64 on ``device``. Features and logits themselves are kept only
    for metrics that need them (50,000 Inception features: 0.4 GB).
    """

    def __init__(self, protocol: Protocol, device: torch.device | str = "cpu"):
        self._protocol = protocol
        self._device = device
        self._gaussian: GaussianStats | None = None
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in a batch as an `Extractor` returns it."""
        features = values[self._protocol.features]
        if self._gaussian is None:
            self._gaussian = GaussianStats(features.shape[1], self._device)
        self._gaussian.update(features)
        if self._protocol.compares_images:
            self._features.append(features.cpu())
        if "is" in self._protocol.metrics and self._protocol.logits:
            self._logits.append(values[self._protocol.logits].cpu())

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean (F,) and covariance (F, F), float64, on the CPU.

        Raises:
            ValueError: fewer than two images.
        """
        if self._gaussian is None:
            raise ValueError("no images to take features of")
        return self._gaussian.mean.cpu(), self._gaussian.cov.cpu()

    @property
    def features(self) -> Tensor:
        """Features (n, F), if the protocol compares images."""
        return torch.cat(self._features)

    @property
    def logits(self) -> Tensor:
        """Logits (n, classes), if the protocol asks for the Inception score."""
        return torch.cat(self._logits)
