"""From images to latent shards, and from finished shards to index and manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..common.files import atomic, sha256, write_text
from ..config import ConfigError, digest, dump
from ..config.specs import EncodeSpec
from ..core.precision import exact_convolutions
from .asset_files import read_record
from .manifest import IndexEntry, Manifest, ShardEntry, histogram, normalisation, published_statistics
from .shards import Scan, ShardCard, checksums, map_arrays, scan_shard, write_shard
from .sources import DataSource, PublishedLatents, open_source
from .tokenizers import Codec, open_tokenizer, weights_digest

BATCH = 32
"""Images encoded at once unless told otherwise; the last bits of convolutions may depend on it."""
CHECKED = 8
"""Images of each shard that are decoded again before it is made."""
PIECE = 256
"""Images of a shard that are in memory at once while statistics are measured."""


def encode_shard(
    spec: EncodeSpec, record: Path, weights: Path | None, shard: int, out: Path, batch: int = BATCH
) -> None:
    """Write shard number ``shard``, a contiguous range of the images, to ``out``.

    Args:
        record: of the fetched images.
        weights: the tokenizer's model file, or the record of its fetched weights.
        batch: images encoded at once.

    Raises:
        ConfigError: sources or tokenizers that are not what the spec says.
        ValueError: latents that are not finite in the stored type.
    """
    count = spec.latents.shards
    if not 0 <= shard < count <= spec.dataset.images:
        raise ConfigError(
            f"{spec.name}: latents.shards: shard {shard} of {count} is impossible for "
            f"{spec.dataset.images} images"
        )
    published_statistics(spec.tokenizer, weights)  # the merge needs them: refuse now rather than then
    opened = read_record(record)
    start, stop = split(spec.dataset.images, count, shard)
    ranges = [range(low, min(low + batch, stop)) for low in range(start, stop, batch)]
    psnr = None
    if spec.dataset.format == "latents-safetensors":
        latents = PublishedLatents(spec.dataset, spec.tokenizer.shape, _views(spec), opened)
        batches = _read_ahead(latents.read, ranges)
    else:
        exact_convolutions()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        codec = open_tokenizer(spec.tokenizer, weights, spec.backbone, device)
        source = open_source(spec.dataset, opened)
        if not spec.tokenizer.plain:
            psnr = decode_check(spec, source, codec, range(start, stop)[:CHECKED])
        batches = _encoded(spec, source, codec, ranges)
    card = ShardCard(
        spec=digest(spec),
        shard=shard,
        start=start,
        stop=stop,
        source=opened.digest,
        weights=weights_digest(weights),
        psnr=psnr,
    )

    def samples() -> Iterator[tuple[np.ndarray, int]]:
        with tqdm(total=stop - start, unit="image", desc=spec.name, mininterval=1.0) as bar:
            for indices, (latents, labels) in batches:
                yield from zip(_store(spec, latents, indices).numpy(), labels.tolist())
                bar.update(len(indices))

    write_shard(out, card, samples())


def _views(spec: EncodeSpec) -> Literal[1, 2]:
    return 2 if spec.latents.flip else 1


@torch.no_grad()
def decode_check(spec: EncodeSpec, source: DataSource, codec: Codec, indices: range) -> float:
    """How well stored latents give back their images: mean PSNR in dB, the peak being 2 (from -1 to 1).

    Raises:
        ConfigError: it is below ``latents.psnr``.
    """
    images, _ = source.read(indices.start, indices.stop)
    latents = _store(spec, codec.encode(images, indices).cpu(), indices)
    means = latents[:, : spec.tokenizer.shape[0]]  # all channels, unless moments are stored
    error = (codec.decode(means.float()).cpu() - images).square().mean((1, 2, 3))
    psnr: float = round((10 * torch.log10(4 / error.clamp_min(1e-10))).mean().item(), 2)
    floor = spec.latents.psnr
    if floor is not None and not psnr >= floor:
        raise ConfigError(
            f"{spec.name}: latents.psnr: images {indices.start} to {indices.stop - 1} come back from the "
            f"tokenizer with {psnr} dB, not {floor}: these are not its weights, or not images it knows"
        )
    print(f"decode check: {psnr} dB on {len(indices)} images")
    return psnr


LabelledBatch = tuple[Tensor, Tensor]
"""Images (n, C, H, W), or latents (n, views, C, H, W), and labels (n,)."""


def _read_ahead(
    read: Callable[[int, int], LabelledBatch], ranges: list[range]
) -> Iterator[tuple[range, LabelledBatch]]:
    """Read the ranges in order, one of them ahead of the consumer."""
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, ranges[0].start, ranges[0].stop)
        for part, following in zip_longest(ranges, ranges[1:]):
            result = pending.result()
            if following is not None:
                pending = reader.submit(read, following.start, following.stop)
            yield part, result


@torch.no_grad()
def _encoded(
    spec: EncodeSpec, source: DataSource, codec: Codec, ranges: list[range]
) -> Iterator[tuple[range, LabelledBatch]]:
    for indices, (images, labels) in _read_ahead(source.read, ranges):
        views = [codec.encode(images, indices)]
        if spec.latents.flip:
            views.append(codec.encode(images.flip(-1), indices, view=1))
        yield indices, (torch.stack(views, dim=1).cpu(), labels)


def _store(spec: EncodeSpec, latents: Tensor, indices: range) -> Tensor:
    """Latents (n, ..., C, H, W) in the type of the shards, if they have the shape and fit."""
    if list(latents.shape[-3:]) != spec.tokenizer.stored:
        raise ConfigError(
            f"{spec.name}: tokenizer.shape: {spec.tokenizer.stored}, but it makes {list(latents.shape[-3:])}"
        )
    stored = latents.to(getattr(torch, spec.latents.dtype))
    if not stored.isfinite().all():
        raise ValueError(
            f"{spec.name}: latents.dtype: of images {indices.start} to {indices.stop - 1}, latents are not "
            f"finite in {spec.latents.dtype} (largest before: {latents.abs().max().item():.3g})"
        )
    return stored


def merge_shards(
    spec: EncodeSpec, record: Path, weights: Path | None, shards: Sequence[Path], out: Path
) -> Manifest:
    """Write the index and, last, the manifest ``out`` beside its shards.

    Args:
        record: of the fetched images; the shards must carry its digest.
        weights: the tokenizer's model file or record, likewise.

    Raises:
        ConfigError: shards of another spec, source or tokenizer, missing or doubled ones, shards
            that are not beside ``out``, latents that are not finite, or of other statistics than
            the published ones.
    """
    source, weights_hash = read_record(record).digest, weights_digest(weights)
    published = published_statistics(spec.tokenizer, weights)
    scans = sorted(((scan_shard(path), path) for path in shards), key=lambda pair: pair[0].card.shard)
    _check_scans(spec, source, weights_hash, scans, out)
    channels = spec.tokenizer.shape[0]
    statistics = ChannelStatistics(channels)
    entries, crcs = [], []
    for scan, path in tqdm(scans, desc="statistics", mininterval=1.0):
        arrays = map_arrays(path, scan.offsets, scan.shape, scan.dtype)
        for start in range(0, len(arrays), PIECE):
            piece = arrays[start : start + PIECE]
            if not np.isfinite(piece).all():
                raise ConfigError(f"{path}: latents that are not finite; do they fit {scan.dtype}?")
            crcs.append(checksums(piece))
            drawn = spec.tokenizer.posterior == "moments"
            statistics.add(piece[:, :, :channels], piece[:, :, channels:] if drawn else None)
        entries.append(
            ShardEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256(path), images=len(arrays))
        )
    labels = np.concatenate([scan.labels for scan, _ in scans])
    per_class = histogram(labels, spec.dataset, out)
    mean, std = statistics.result()
    if published is not None:
        published.compare(mean, std)
    applied = normalisation(spec.tokenizer, mean, std, published)
    checked = [scan.card.psnr for scan, _ in scans if scan.card.psnr is not None]
    index = out.with_name(f"{out.stem}.index.npz")
    with atomic(index) as temporary:
        offsets = np.concatenate([scan.offsets for scan, _ in scans])
        np.savez(temporary, offsets=offsets, labels=labels, checksums=np.concatenate(crcs))
    manifest = Manifest(
        name=spec.name,
        dataset=spec.dataset,
        tokenizer=spec.tokenizer,
        images=len(labels),
        shape=spec.tokenizer.shape,
        views=_views(spec),
        dtype=spec.latents.dtype,
        mean=mean,
        std=std,
        published=published,
        psnr=min(checked, default=None),
        normalisation=applied,
        histogram=per_class,
        shards=entries,
        index=IndexEntry(name=index.name, sha256=sha256(index)),
        weights=weights_hash,
        source=source,
        spec=digest(spec),
    )
    write_text(out, dump(manifest))
    return manifest


def split(images: int, shards: int, shard: int) -> tuple[int, int]:
    """First and last-plus-one image of a shard: contiguous, as even as possible."""
    return images * shard // shards, images * (shard + 1) // shards


def _check_scans(
    spec: EncodeSpec, source: str, weights: str | None, scans: Sequence[tuple[Scan, Path]], out: Path
) -> None:
    numbers = [scan.card.shard for scan, _ in scans]
    if numbers != list(range(spec.latents.shards)):
        raise ConfigError(f"{out}: latents.shards: {spec.latents.shards}, but given are shards {numbers}")
    shape = (_views(spec), *spec.tokenizer.stored)
    for scan, path in scans:
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


class ChannelStatistics:
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
