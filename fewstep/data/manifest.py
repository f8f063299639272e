"""The manifest of a set of latent shards: what they are, and how latents are normalised."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..common.files import sha256
from ..common.tensor_files import load_torch
from ..config import ConfigError, Strict
from ..config.base import read_spec
from ..config.settings import Dataset, Tokenizer
from ..config.specs import LatentCard
from .asset_files import read_record
from .normalisation import Normalisation

HEX = r"^[0-9a-f]{64}$"
USUAL = 0.1
"""Differences up to this are what another choice of images makes; in published standard deviations."""
REFUSED = 1.0


class PublishedStatistics(Strict):
    """Mean and standard deviation per channel as their authors give them."""

    file: str
    sha256: str = Field(pattern=HEX)
    mean: list[float]
    std: list[float]

    def distance(self, mean: list[float], std: list[float]) -> float:
        """Largest difference of a channel's mean or deviation, in its published deviations."""
        return max(
            max(abs(m - own_mean), abs(s - own_std)) / own_std
            for m, s, own_mean, own_std in zip(mean, std, self.mean, self.std, strict=True)
        )

    def compare(self, mean: list[float], std: list[float]) -> None:
        """Warn of measured statistics that differ, and refuse those of plainly other latents.

        Raises:
            ConfigError: they are further off than one standard deviation.
        """
        distance = self.distance(mean, std)
        if distance <= USUAL:
            return
        text = (
            f"{self.file}: published statistics are {distance:.2f} standard deviations off those of the "
            f"latents (usual: below {USUAL})"
        )
        if distance > REFUSED:
            raise ConfigError(f"{text}: they belong to other latents; use tokenizer.statistics: computed")
        print(f"warning: {text}; are these the tokenizer and the images that they were made with?")


class ShardEntry(Strict):
    name: str = Field(description="file beside the manifest")
    bytes: int
    sha256: str = Field(pattern=HEX)
    images: int = Field(gt=0)


class IndexEntry(Strict):
    name: str = Field(description="file beside the manifest")
    sha256: str = Field(pattern=HEX)


class Manifest(Strict):
    """Everything that makes two sets of latents comparable or not."""

    name: str
    dataset: Dataset
    tokenizer: Tokenizer
    images: int
    shape: list[int] = Field(min_length=3, max_length=3, description="(C, H, W)")
    views: Literal[1, 2] = Field(description="2: the mirrored image too")
    dtype: Literal["float16", "float32"]
    mean: list[float] = Field(description="per channel over all images, views and pixels")
    std: list[float] = Field(description="likewise; population standard deviation")
    published: PublishedStatistics | None = Field(
        default=None, description="statistics used instead of mean, std"
    )
    psnr: float | None = Field(default=None, description="worst shard's decode check, dB")
    normalisation: Normalisation = Field(description="applied before training, undone before decoding")
    histogram: list[int] = Field(description="images per class; empty if every image is one of its own")
    shards: list[ShardEntry]
    index: IndexEntry
    weights: str | None = Field(description="SHA-256 of the tokenizer's weights")
    source: str = Field(description="SHA-256 over names and hashes of the source's files")
    spec: str = Field(description="digest of the encode spec")

    def check(self, card: LatentCard, path: str | Path) -> None:
        """Refuse latents other than ``card`` asks for.

        Raises:
            ValueError: naming the manifest, every field that differs, and both values.
        """
        own = LatentCard(
            name=self.name,
            shape=self.shape,
            classes=self.dataset.classes,
            images=self.images,
            tokenizer=self.tokenizer,
        )
        ours, asked = _flat(own), _flat(card)
        differences = [
            f"{path}: {key}: the latents have {ours[key]!r}, the spec asks for {asked[key]!r}"
            for key in asked
            if ours[key] != asked[key]
        ]
        if differences:
            raise ValueError("\n".join(differences))


def _flat(card: LatentCard) -> dict[str, Any]:
    """The card's values by their keys, those of the tokenizer as tokenizer.KEY."""
    tokenizer = {f"tokenizer.{key}": value for key, value in card.tokenizer.model_dump().items()}
    return card.model_dump(exclude={"tokenizer"}) | tokenizer


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest and check that it agrees with itself; enough to denormalise and decode.

    Raises:
        ConfigError: naming the file and the field.
    """
    manifest = read_spec(Manifest, path, "a manifest of latents")
    channels, distinct = manifest.shape[0], manifest.dataset.distinct
    expected = normalisation(manifest.tokenizer, manifest.mean, manifest.std, manifest.published)
    for key, found, right in (
        ("shape", manifest.shape, manifest.tokenizer.shape),
        ("mean", len(manifest.mean), channels),
        ("std", len(manifest.std), channels),
        ("normalisation.mean", len(expected.mean), channels),
        ("normalisation.std", len(expected.std), channels),
        ("normalisation", manifest.normalisation, expected),
        ("images", manifest.images, manifest.dataset.images),
        ("histogram", len(manifest.histogram), 0 if distinct else manifest.dataset.classes),
        ("histogram", sum(manifest.histogram), 0 if distinct else manifest.images),
        ("shards", sum(shard.images for shard in manifest.shards), manifest.images),
    ):
        if found != right:
            raise ConfigError(f"{path}: {key}: {found} disagrees with {right} in the same file")
    return manifest


def histogram(labels: np.ndarray, dataset: Dataset, where: Path) -> list[int]:
    """Images per class; of a data set whose images are classes of their own, which may be many, nothing.

    Raises:
        ConfigError: a class without images, or an unknown one; images in another order than their labels.
    """
    if dataset.distinct:
        if not np.array_equal(labels, np.arange(dataset.classes)):
            raise ConfigError(f"{where}: dataset.classes: labels are not 0 to {dataset.classes - 1} in order")
        return []
    counted: list[int] = np.bincount(labels, minlength=dataset.classes).tolist()
    if len(counted) != dataset.classes or 0 in counted:
        raise ConfigError(f"{where}: dataset.classes: {dataset.classes}, but images per class: {counted}")
    return counted


def published_statistics(tokenizer: Tokenizer, weights: Path | None) -> PublishedStatistics | None:
    """What ``tokenizer.statistics_file`` holds: a mapping of tensors mean and std, (1, C, 1, 1) each.

    Args:
        weights: record of the asset that has the file.

    Returns:
        None if the tokenizer does not ask for published statistics.

    Raises:
        ValueError: a missing file, or one that does not hold them.
    """
    name = tokenizer.statistics_file
    if name is None:
        return None
    if weights is None:
        raise ConfigError("tokenizer.statistics: published needs the record of the weights; pass --tokenizer")
    path, _ = read_record(weights).verified(name)
    content = load_torch(path)
    values = {}
    for key in ("mean", "std"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, Tensor) or value.numel() != tokenizer.shape[0]:
            raise ConfigError(f"{path}: {key}: must be a tensor of {tokenizer.shape[0]} channels")
        if not value.isfinite().all() or (key == "std" and not (value > 0).all()):
            raise ConfigError(f"{path}: {key}: must be finite, and std positive")
        values[key] = [float(number) for number in value.flatten()]
    return PublishedStatistics(file=name, sha256=sha256(path), mean=values["mean"], std=values["std"])


def known_normalisation(tokenizer: Tokenizer, weights: Path | None) -> Normalisation:
    """The normalisation of latents that are not at hand, from the tokenizer's own files.

    Args:
        weights: record of the tokenizer's asset.

    Raises:
        ConfigError: it is measured on the latents; a damaged file of statistics.
    """
    if tokenizer.measured:
        raise ConfigError("tokenizer.statistics: computed is in the latents' manifest; pass --latents")
    zeros, ones = [0.0] * tokenizer.shape[0], [1.0] * tokenizer.shape[0]
    return normalisation(tokenizer, zeros, ones, published_statistics(tokenizer, weights))


def normalisation(
    tokenizer: Tokenizer, mean: list[float], std: list[float], published: PublishedStatistics | None = None
) -> Normalisation:
    """The normalisation that ``tokenizer.statistics`` asks for, given measured and published moments.

    Raises:
        ConfigError: published statistics are asked for and absent; a constant channel.
    """
    if tokenizer.statistics == "published":
        if published is None:
            raise ConfigError("tokenizer.statistics: published, but there are none")
        mean, std = published.mean, published.std
    elif tokenizer.statistics == "given":
        assert tokenizer.mean is not None and tokenizer.std is not None
        mean, std = tokenizer.mean, tokenizer.std
    elif tokenizer.statistics == "none":
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    if not torch.tensor(std).gt(0).all():
        raise ConfigError(f"tokenizer.statistics: a channel is constant (std {std}) and cannot be normalised")
    return Normalisation(mean=mean, std=std, multiplier=tokenizer.multiplier)
