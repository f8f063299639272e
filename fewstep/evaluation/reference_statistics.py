"""The real images' side of a protocol: statistics, and their features where a metric compares images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common.array_files import open_npz
from ..common.files import atomic
from ..config import digest
from ..config.settings import Protocol
from ..config.specs import ReferenceSpec
from ..data.asset_files import read_record
from ..data.shards import LatentShards
from .distributed_map import distributed_map, is_main, join_processes
from .features import Extractor, FeatureCollector
from .image_archive import open_npz_images
from .quantization import quantize, refuse_nan

CHUNK = 250


def write_reference(
    spec: ReferenceSpec, manifest: Path | None, published: Path | None, weights: Path | None, out: Path
) -> None:
    """Write `mu`, `sigma` (float64), `n`, `shape` (C, H, W) and perhaps `features`, float32, as npz.

    A published reference keeps its own mu and sigma, bit for bit, and only features are computed from its
    images; of an extractor that these are not of, mu and sigma are computed from its images too.

    Args:
        manifest: of shards of the real images, if ``spec`` names latents.
        published: otherwise the record of the published reference, which holds images (`arr_0`).
        weights: of the extractor, if it has any.

    Raises:
        ValueError: images or statistics that are not there, or not of the protocol.
    """
    if published is None:
        assert manifest is not None
        read, count = _shard_images(manifest, spec)
    else:
        published = published_file(published, spec.protocol)
        read, count = _published_images(published, spec.protocol)
    device = join_processes()
    extractor = Extractor(spec.protocol, weights, spec.extractor, device)
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    collector = FeatureCollector(spec.protocol, device)
    for values in distributed_map(read, extractor, chunks):
        collector.add(values)
    if not is_main():
        return
    moments = published if spec.protocol.published_moments else None
    mu, sigma = collector.statistics() if moments is None else read_statistics(moments)
    content = {"features": collector.features.numpy()} if spec.protocol.compares_images else {}
    with atomic(out) as temporary:
        np.savez(
            temporary,
            mu=mu.numpy(),
            sigma=sigma.numpy(),
            n=count,
            shape=np.array(read(range(1)).shape[1:]),
            spec=digest(spec),
            extractor=str(extractor.sha256),
            **content,
        )


def _shard_images(manifest: Path, spec: ReferenceSpec) -> tuple[Callable[[range], Tensor], int]:
    """Reader of images (n, C, H, W) behind shards of pixels or points, and their number."""
    assert spec.latents is not None
    if not spec.latents.tokenizer.plain:
        raise ValueError(f"{manifest}: latents {spec.latents.name} are not pixels")
    shards = LatentShards(manifest)
    shards.check(spec.latents)
    # Real images are bytes already, which the rule for generated ones must not change.
    rule = "none" if spec.protocol.uint8 == "none" else "round"

    def read(indices: range) -> Tensor:
        images = shards.read(indices)[:, 0]
        refuse_nan(images.isnan().any())
        return quantize(images, rule)

    return read, len(shards)


def _published_images(path: Path, protocol: Protocol) -> tuple[Callable[[range], Tensor], int]:
    wanting = " and ".join(protocol.beyond_moments)
    remedy = f"; take {wanting} out of the protocol's metrics, or name another reference"
    read, count = open_npz_images(path, remedy)
    return lambda indices: torch.from_numpy(read(indices)), count


@dataclass(frozen=True)
class Reference:
    """What a protocol compares with."""

    mu: Tensor
    """(F,), float64."""
    sigma: Tensor
    """(F, F), float64."""
    features: Tensor | None
    """(m, F) of real images, where a metric compares images."""


def published_file(record: Path, protocol: Protocol) -> Path:
    """The file of a published reference in a fetched asset.

    Raises:
        ConfigError: it is missing, or not the one that was fetched.
    """
    assert protocol.reference is not None
    return read_record(record).verified(protocol.reference.file)[0]


def read_reference(path: Path, protocol: Protocol, image: list[int], extractor: str | None) -> Reference:
    """The reference in an npz, for images of the shape ``image`` (C, H, W).

    Args:
        extractor: SHA-256 of the extractor's weights; None where there are none.

    Raises:
        ValueError: it lacks what the protocol needs, or was made with other extractor weights or from
            images of another size.
    """
    mu, sigma = read_statistics(path)
    wanted = ["extractor", "shape", *(["features"] if protocol.compares_images else [])]
    with open_npz(path) as content:
        found = {name: content[name] for name in wanted if name in content}
    if "extractor" in found and str(found["extractor"]) != str(extractor):
        raise ValueError(f"{path}: was made with other weights of {protocol.extractor}")
    if "shape" in found and found["shape"].tolist() != image:
        raise ValueError(f"{path}: real images are {tuple(found['shape'].tolist())}, not {tuple(image)}")
    if not protocol.compares_images:
        return Reference(mu, sigma, None)
    if "features" not in found:
        raise ValueError(f"{path}: holds no features of real images; make it with fewstep.reference")
    features = torch.from_numpy(found["features"])
    if features.dim() != 2 or features.shape[1] != len(mu):
        raise ValueError(f"{path}: statistics of {len(mu)} dimensions, but features {tuple(features.shape)}")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{path}: a feature is NaN or infinite")
    return Reference(mu, sigma, features)


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """mu (F,) and sigma (F, F) of an npz, in float64.

    Raises:
        ValueError: the file holds none, or they disagree or are not finite.
    """
    with open_npz(path) as content:
        names = sorted(content)
        found = [torch.from_numpy(content[name]).double() for name in ("mu", "sigma") if name in names]
    if len(found) < 2:
        raise ValueError(f"{path}: holds {names}, not mu and sigma")
    mu, sigma = found
    if mu.dim() != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} do not belong together"
        )
    if not bool(mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{path}: mu or sigma holds NaN or infinity")
    return mu, sigma
