"""The manifest of a set of latent shards: what they are, and how latents are normalised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..config import ConfigError, Strict
from ..config.base import parse
from ..config.settings import Dataset, Tokenizer
from ..config.specs import LatentCard
from .statistics import Published, published

HEX = r"^[0-9a-f]{64}$"


class ShardEntry(Strict):
    name: str = Field(description="file beside the manifest")
    bytes: int
    sha256: str = Field(pattern=HEX)
    images: int = Field(gt=0)


class IndexEntry(Strict):
    name: str = Field(description="file beside the manifest")
    sha256: str = Field(pattern=HEX)


class Normalisation(Strict):
    """Per channel: z = (x - mean) / std * multiplier.

    Both directions work in place on a copy of their own: temporaries cost a training's loader more
    time than the arithmetic.
    """

    mean: list[float]
    std: list[float]
    multiplier: float

    def _per_channel(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * 2)
        return like.new_tensor(self.mean).view(shape), like.new_tensor(self.std).view(shape)

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw latents (..., C, H, W) of any float type to normalised float32."""
        result = latents.to(torch.float32, copy=True)
        mean, std = self._per_channel(result)
        return result.sub_(mean).div_(std).mul_(self.multiplier)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverse of `normalise`: what a tokenizer decodes, float32."""
        result = latents.to(torch.float32, copy=True)
        mean, std = self._per_channel(result)
        return result.div_(self.multiplier).mul_(std).add_(mean)


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
    published: Published | None = Field(default=None, description="statistics used instead of mean, std")
    psnr: float | None = Field(default=None, description="worst shard's decode check, dB")
    normalisation: Normalisation = Field(description="applied before training, undone before decoding")
    histogram: list[int] = Field(description="images per class")
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
        ours = {
            "name": self.name,
            "shape": self.shape,
            "classes": self.dataset.classes,
            "images": self.images,
            **{f"tokenizer.{key}": value for key, value in self.tokenizer.model_dump().items()},
        }
        asked = {
            **card.model_dump(exclude={"tokenizer"}),
            **{f"tokenizer.{key}": value for key, value in card.tokenizer.model_dump().items()},
        }
        differences = [
            f"{path}: {key}: the latents have {ours[key]!r}, the spec asks for {asked[key]!r}"
            for key in asked
            if ours[key] != asked[key]
        ]
        if differences:
            raise ValueError("\n".join(differences))


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest and check that it agrees with itself; enough to denormalise and decode.

    Raises:
        ConfigError: naming the file and the field.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a manifest of latents: {error}") from None
    manifest = parse(Manifest, raw, str(path))
    channels = manifest.shape[0]
    expected = normalisation(manifest.tokenizer, manifest.mean, manifest.std, manifest.published)
    for key, found, right in (
        ("shape", manifest.shape, manifest.tokenizer.shape),
        ("mean", len(manifest.mean), channels),
        ("std", len(manifest.std), channels),
        ("normalisation.mean", len(expected.mean), channels),
        ("normalisation.std", len(expected.std), channels),
        ("normalisation", manifest.normalisation, expected),
        ("images", manifest.images, manifest.dataset.images),
        ("histogram", len(manifest.histogram), manifest.dataset.classes),
        ("histogram", sum(manifest.histogram), manifest.images),
        ("shards", sum(shard.images for shard in manifest.shards), manifest.images),
    ):
        if found != right:
            raise ConfigError(f"{path}: {key}: {found} disagrees with {right} in the same file")
    return manifest


def known_normalisation(tokenizer: Tokenizer, weights: Path | None) -> Normalisation:
    """The normalisation of latents that are not at hand, from the tokenizer's own files.

    Args:
        weights: record of the tokenizer's asset.

    Raises:
        ConfigError: it is measured on the latents; a damaged file of statistics.
    """
    if tokenizer.measured:
        raise ConfigError("tokenizer.statistics: computed is in the latents' manifest; pass --latents")
    channels = tokenizer.shape[0]
    return normalisation(tokenizer, [0.0] * channels, [1.0] * channels, published(tokenizer, weights))


def normalisation(
    tokenizer: Tokenizer, mean: list[float], std: list[float], published: Published | None = None
) -> Normalisation:
    """The normalisation that ``tokenizer.statistics`` asks for, given measured and published moments.

    Raises:
        ConfigError: published statistics are asked for and absent; a constant channel.
    """
    if tokenizer.statistics == "published":
        if published is None:
            raise ConfigError("tokenizer.statistics: published, but there are none")
        mean, std = published.mean, published.std
    elif tokenizer.statistics == "none":
        mean, std = [0.0] * len(mean), [1.0] * len(std)
    if not torch.tensor(std).gt(0).all():
        raise ConfigError(f"tokenizer.statistics: a channel is constant (std {std}) and cannot be normalised")
    return Normalisation(mean=mean, std=std, multiplier=tokenizer.multiplier)
