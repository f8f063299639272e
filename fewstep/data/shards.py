"""Latent shards: uncompressed WebDataset tars, written once and read through memory maps.

A shard holds for every image two members, ``{index:08d}.cls`` (the label as text) and
``{index:08d}.latent.npy`` (views, C, H, W), or (views, 2 C, H, W) where mean and deviation of the
posterior are stored. Label texts fit one tar block and arrays have one shape, so that arrays lie at a
constant stride. A first member ``__meta__/card.json``, which WebDataset skips, says how the shard was
made.
"""

from __future__ import annotations

import io
import json
import math
import resource
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..common.array_files import open_npz, read_npy_header
from ..common.files import atomic, verify_beside
from ..common.tar_files import members
from ..config import ConfigError, Strict
from ..config.base import parse
from ..config.specs import LatentCard
from .manifest import histogram, read_manifest

HASH_BELOW = 256 << 20
"""Shards are hashed at opening if they are smaller than this together, in bytes."""
MOST_CARD_BYTES = 1 << 16
OTHER_FILES = 512
"""Files that a process may have open beside its shards."""


class ShardCard(Strict):
    """How a shard was made; all shards of a set agree but for range and check."""

    spec: str
    shard: int
    start: int
    stop: int
    source: str
    weights: str | None
    psnr: float | None = Field(default=None, description="decode check before this shard, dB")


def write_shard(path: Path, card: ShardCard, samples: Iterable[tuple[np.ndarray, int]]) -> None:
    """Write a shard atomically; equal samples give equal bytes.

    Args:
        samples: array (views, C, H, W) and label of the images card.start..card.stop-1.
    """
    from webdataset import TarWriter

    with (
        atomic(path) as temporary,
        temporary.open("wb") as stream,
        TarWriter(stream, encoder=False, compress=False, mtime=0, user="", group="", mode=0o644) as tar,
    ):
        tar.write({"__key__": "__meta__/card", "json": card.model_dump_json().encode()})
        for index, (array, label) in enumerate(samples, card.start):
            content = io.BytesIO()
            np.save(content, np.ascontiguousarray(array), allow_pickle=False)
            label_text = str(int(label)).encode()
            tar.write({"__key__": f"{index:08d}", "cls": label_text, "latent.npy": content.getvalue()})


@dataclass(frozen=True)
class Scan:
    """What reading a shard's headers tells."""

    card: ShardCard
    offsets: np.ndarray
    """Byte offset of each image's raw array data, int64 (n,)."""
    labels: np.ndarray
    """int64 (n,)."""
    shape: tuple[int, ...]
    """(views, C, H, W)."""
    dtype: np.dtype


def scan_shard(path: Path, limit: int | None = None) -> Scan:
    """Read all headers of a shard, or those of the first ``limit`` images.

    Raises:
        ConfigError: anything that `write_shard` would not have written.
    """
    try:
        with tarfile.open(path, "r:") as tar, path.open("rb") as stream:
            return _scan(tar, stream, path, limit)
    except ConfigError:
        raise
    except (OSError, tarfile.TarError, ValueError) as error:
        raise ConfigError(f"{path}: not a latent shard: {error}") from None


def _scan(tar: tarfile.TarFile, stream: io.BufferedReader, path: Path, limit: int | None) -> Scan:
    found_members = members(tar, path.stat().st_size)

    def member() -> tarfile.TarInfo:
        found = next(found_members, None)
        if found is None:
            raise ConfigError(f"{path}: not a latent shard: it ends too early")
        return found

    def content(place: tarfile.TarInfo, length: int) -> bytes:
        stream.seek(place.offset_data)
        return stream.read(min(length, place.size))

    first = member()
    if first.name != "__meta__/card.json":
        raise ConfigError(f"{path}: not a latent shard: it does not begin with __meta__/card.json")
    card = parse(ShardCard, json.loads(content(first, MOST_CARD_BYTES)), str(path))
    offsets, labels, header = [], [], b""
    shape: tuple[int, ...] = ()
    dtype = np.dtype(np.uint8)
    for index in range(card.start, card.stop)[:limit]:
        label, array = member(), member()
        if not header:
            start = io.BytesIO(content(array, 1024))
            shape, dtype = read_npy_header(start)
            header = start.getvalue()[: start.tell()]
        names = label.name, array.name
        if names != (f"{index:08d}.cls", f"{index:08d}.latent.npy") or content(array, len(header)) != header:
            raise ConfigError(f"{path}: sample {index}: another name or array format than expected")
        offsets.append(array.offset_data + len(header))
        labels.append(int(content(label, 32)))
    if limit is None and next(found_members, None) is not None:
        raise ConfigError(f"{path}: more samples than its card says ({card.start} to {card.stop})")
    return Scan(card, np.array(offsets), np.array(labels), shape, dtype)


def map_arrays(path: Path, offsets: np.ndarray, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Read-only memory map (n, views, C, H, W) over all arrays of a shard.

    Raises:
        ValueError: offsets that are not evenly spaced or lie outside the file.
    """
    step = int(offsets[1] - offsets[0]) if len(offsets) > 1 else 0
    item = math.prod(shape) * dtype.itemsize
    inside = offsets[0] >= 0 and offsets[-1] + item <= path.stat().st_size
    if not inside or (np.diff(offsets) != step).any() or (len(offsets) > 1 and step < item):
        raise ValueError(f"{path}: the index does not fit this shard; make the manifest again")
    memory = np.memmap(path, np.uint8, mode="r")
    within = np.ndarray(tuple(shape), dtype).strides
    return np.ndarray((len(offsets), *shape), dtype, memory, int(offsets[0]), (step, *within))


def checksums(arrays: np.ndarray) -> np.ndarray:
    """CRC-32 of each view, uint32 (n, views), of arrays (n, views, C, H, W)."""
    found = [[zlib.crc32(np.ascontiguousarray(view).data) for view in image] for image in arrays]
    return np.array(found, np.uint32).reshape(arrays.shape[:2])


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may: a mapped file stays open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        limit = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


class LatentShards:
    """Random access to the latents that a manifest names.

    Sizes and the index are verified at opening; the shards' hashes too if they are small, and otherwise each
    image's checksum when it is read.

    Raises:
        ValueError: naming manifest, field and remedy, if any file is not what the manifest says.
    """

    def __init__(self, manifest_path: str | Path) -> None:
        self.path = Path(manifest_path)
        self.manifest = read_manifest(self.path)
        folder = self.path.parent
        shards = self.manifest.shards
        self._hashed = sum(shard.bytes for shard in shards) < HASH_BELOW
        for shard in shards:
            verify_beside(self.path, folder / shard.name, shard.sha256 if self._hashed else None, shard.bytes)
        index = folder / self.manifest.index.name
        verify_beside(self.path, index, self.manifest.index.sha256, None)
        with open_npz(index) as content:
            offsets, labels, self._checksums = content["offsets"], content["labels"], content["checksums"]
        if not len(offsets) == len(labels) == self.manifest.images:
            raise ValueError(f"{self.path}: images: {self.manifest.images}, the index has {len(labels)}")
        if histogram(labels, self.manifest.dataset, self.path) != self.manifest.histogram:
            raise ValueError(f"{self.path}: histogram: the index has other labels")
        self.views = self.manifest.views
        self.shape = tuple(self.manifest.shape)
        self.moments = self.manifest.tokenizer.posterior == "moments"
        """Whether the shards hold mean and deviation of the posterior, from which `read` draws."""
        self._stored = tuple(self.manifest.tokenizer.stored)
        self.labels = torch.from_numpy(labels)
        """Labels of all images, int64 (len,)."""
        self._starts = np.cumsum([0, *(shard.images for shard in shards)])
        _allow_open_files(len(shards) + OTHER_FILES)
        parts = zip(shards, self._starts.tolist(), np.split(offsets, self._starts[1:-1]))
        self._arrays = [self._map(folder / shard.name, start, part) for shard, start, part in parts]

    def _map(self, path: Path, start: int, offsets: np.ndarray) -> np.ndarray:
        scan = scan_shard(path, limit=1)
        dtype, shape = np.dtype(self.manifest.dtype), (self.views, *self._stored)
        for key, found, expected in (
            ("spec", scan.card.spec, self.manifest.spec),
            ("images", (scan.card.start, scan.card.stop), (start, start + len(offsets))),
            ("views, shape", scan.shape, shape),
            ("dtype", scan.dtype, dtype),
        ):
            if found != expected:
                raise ValueError(f"{self.path}: {path.name}: {key}: {found}, the manifest says {expected}")
        return map_arrays(path, offsets, shape, dtype)

    def __len__(self) -> int:
        return self.manifest.images

    def check(self, card: LatentCard) -> None:
        """Refuse latents other than ``card`` asks for; see `Manifest.check`."""
        self.manifest.check(card, self.path)

    def read(
        self,
        indices: Tensor | Sequence[int],
        views: Tensor | Sequence[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Raw latents in the stored dtype.

        Args:
            indices: images, int64 (n,).
            views: view of each image, int64 (n,); None reads all views.
            noise: standard normal, in the shape of the result: draw from stored moments, in float32.
                Without it their mean is returned.

        Returns:
            (n, views, C, H, W), or (n, C, H, W) if ``views`` is given.
        """
        index = np.asarray(indices, np.int64)
        chosen = None if views is None else np.asarray(views, np.int64)
        shape = self._stored if chosen is not None else (self.views, *self._stored)
        result = np.empty((len(index), *shape), self.manifest.dtype)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"{self.path}: image outside 0..{len(self) - 1}")
        owner = np.searchsorted(self._starts, index, side="right") - 1
        for shard in np.unique(owner):
            rows = np.flatnonzero(owner == shard)
            local = index[rows] - self._starts[shard]
            array = self._arrays[shard]
            result[rows] = array[local] if chosen is None else array[local, chosen[rows]]
        if not self._hashed:
            self._verify_images(index, chosen, result)
        latents = torch.from_numpy(result)
        if not self.moments:
            return latents
        mean, deviation = latents.chunk(2, dim=-3)
        return mean if noise is None else torch.addcmul(mean.float(), deviation.float(), noise)

    def _verify_images(self, index: np.ndarray, views: np.ndarray | None, arrays: np.ndarray) -> None:
        expected = self._checksums[index] if views is None else self._checksums[index, views, None]
        found = checksums(arrays if views is None else arrays[:, None])
        if (wrong := np.flatnonzero((found != expected).any(1))).size:
            image = index[wrong[0]]
            name = self.manifest.shards[np.searchsorted(self._starts, image, side="right") - 1].name
            raise ValueError(f"{self.path}: {name}: damaged: image {image}; make this shard again")

    def normalise(self, latents: Tensor) -> Tensor:
        """Raw (..., C, H, W) to what a network sees, float32."""
        return self.manifest.normalisation.normalise(latents)
