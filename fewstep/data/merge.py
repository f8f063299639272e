"""From finished shards to index and manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..common.files import atomic, sha256, write_text
from ..config import ConfigError, digest
from ..config.specs import EncodeSpec
from .manifest import IndexEntry, Manifest, ShardEntry, normalisation
from .shards import Scan, map_arrays, scan_shard
from .statistics import Published

PIECE = 256


class Moments:
    """Running mean and variance per channel in float64 (Chan, Golub and LeVeque, 1979)."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = np.zeros(channels)
        self._square = np.zeros(channels)

    def add(self, latents: np.ndarray, deviations: np.ndarray | None = None) -> None:
        """Take in latents (n, views, C, H, W), or means and deviations of what latents are drawn from."""
        axes = (0, 1, 3, 4)
        if deviations is not None:
            self._square += np.square(deviations.astype(np.float64)).sum(axes)
        latents = latents.astype(np.float64)
        count = latents.size // latents.shape[2]
        mean = latents.mean(axes)
        square = np.square(latents - mean[:, None, None]).sum(axes)
        total = self._count + count
        shift = mean - self._mean
        self._square += square + shift**2 * (self._count * count / total)
        self._mean += shift * (count / total)
        self._count = total

    def result(self) -> tuple[list[float], list[float]]:
        """Mean and population standard deviation per channel."""
        return self._mean.tolist(), np.sqrt(self._square / self._count).tolist()


def merge(
    spec: EncodeSpec,
    source: str,
    weights: str | None,
    shards: Sequence[Path],
    out: Path,
    published: Published | None = None,
) -> Manifest:
    """Write the index and, last, the manifest ``out`` beside its shards.

    Args:
        source: digest of the record of the images, which the shards must carry too.
        weights: digest of the tokenizer's weights, likewise.
        published: statistics that normalise instead of the measured ones.

    Raises:
        ConfigError: shards of another spec, source or tokenizer, missing or doubled ones, shards
            that are not beside ``out``, latents that are not finite, or of other statistics than
            the published ones.
    """
    scans = [scan_shard(path) for path in shards]
    order = sorted(range(len(scans)), key=lambda i: scans[i].card.shard)
    scans, shards = [scans[i] for i in order], [shards[i] for i in order]
    _agree(spec, source, weights, scans, shards, out)
    channels = spec.tokenizer.shape[0]
    moments = Moments(channels)
    entries = []
    for scan, path in zip(tqdm(scans, desc="statistics", mininterval=1.0), shards):
        arrays = map_arrays(path, scan.offsets, scan.shape, scan.dtype)
        for start in range(0, len(arrays), PIECE):
            piece = arrays[start : start + PIECE]
            if not np.isfinite(piece).all():
                raise ConfigError(f"{path}: latents that are not finite; do they fit {scan.dtype}?")
            drawn = spec.tokenizer.posterior == "moments"
            moments.add(piece[:, :, :channels], piece[:, :, channels:] if drawn else None)
        entries.append(
            ShardEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256(path), images=len(arrays))
        )
    labels = np.concatenate([scan.labels for scan in scans])
    histogram = np.bincount(labels, minlength=spec.dataset.classes).tolist()
    if len(histogram) != spec.dataset.classes or 0 in histogram:
        raise ConfigError(
            f"{out}: dataset.classes: {spec.dataset.classes}, but images per class: {histogram}"
        )
    mean, std = moments.result()
    if published is not None:
        published.compare(mean, std)
    applied = normalisation(spec.tokenizer, mean, std, published)
    checked = [scan.card.psnr for scan in scans if scan.card.psnr is not None]
    index = out.with_name(f"{out.stem}.index.npz")
    with atomic(index) as temporary:
        np.savez(temporary, offsets=np.concatenate([scan.offsets for scan in scans]), labels=labels)
    manifest = Manifest(
        name=spec.name,
        dataset=spec.dataset,
        tokenizer=spec.tokenizer,
        images=len(labels),
        shape=spec.tokenizer.shape,
        views=2 if spec.latents.flip else 1,
        dtype=spec.latents.dtype,
        mean=mean,
        std=std,
        published=published,
        psnr=min(checked, default=None),
        normalisation=applied,
        histogram=histogram,
        shards=entries,
        index=IndexEntry(name=index.name, sha256=sha256(index)),
        weights=weights,
        source=source,
        spec=digest(spec),
    )
    write_text(out, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def split(images: int, shards: int, shard: int) -> tuple[int, int]:
    """First and last-plus-one image of a shard: contiguous, as even as possible."""
    return images * shard // shards, images * (shard + 1) // shards


def _agree(
    spec: EncodeSpec,
    source: str,
    weights: str | None,
    scans: Sequence[Scan],
    shards: Sequence[Path],
    out: Path,
) -> None:
    numbers = [scan.card.shard for scan in scans]
    if numbers != list(range(spec.latents.shards)):
        raise ConfigError(f"{out}: latents.shards: {spec.latents.shards}, but given are shards {numbers}")
    shape = (2 if spec.latents.flip else 1, *spec.tokenizer.stored)
    for scan, path in zip(scans, shards):
        card = scan.card
        for key, found, expected in (
            ("spec", card.spec, digest(spec)),
            ("source", card.source, source),
            ("weights", card.weights, weights),
            ("range", (card.start, card.stop), split(spec.dataset.images, spec.latents.shards, card.shard)),
            ("shape", scan.shape, shape),
            ("dtype", scan.dtype, np.dtype(spec.latents.dtype)),
            ("folder", path.parent.resolve(), out.parent.resolve()),
        ):
            if found != expected:
                raise ConfigError(f"{path}: {key}: {found} instead of {expected}; encode this shard again")
