"""Encode a data set to latent shards, or merge finished shards to a manifest.

    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --shard K --out SHARD
    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --merge SHARD... --out MANIFEST

Shards can be made in any order and on any machines. Each is a contiguous range of the images, appears
whole or not at all, and has the same bytes on every run. The merge writes manifest.index.npz beside
manifest.json.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .common.cli import parser, run
from .config import ConfigError, digest, read_spec
from .config.specs import EncodeSpec
from .core.precision import exact_convolutions
from .data.merge import merge, split
from .data.published import PublishedLatents
from .data.records import read_record
from .data.shards import ShardCard, write_shard
from .data.sources import Source, open_source
from .data.statistics import published
from .data.tokenizers import Coder, open_tokenizer, weights_digest

BATCH = 32
"""Images encoded at once unless told otherwise; the last bits of convolutions may depend on it."""
CHECKED = 8
"""Images of each shard that are decoded again before it is made."""


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: sources, tokenizers or shards that are not what the spec says.
        ValueError: latents that are not finite in the stored type.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, required=True, help="record of the fetched images")
    arguments.add_argument(
        "--tokenizer", type=Path, nargs="?", help="model file, or record of fetched weights, if it has any"
    )
    arguments.add_argument("--batch", type=int, default=BATCH, help="images encoded at once (%(default)s)")
    mode = arguments.add_mutually_exclusive_group(required=True)
    mode.add_argument("--shard", type=int, help="number of the shard to write")
    mode.add_argument("--merge", type=Path, nargs="+", metavar="SHARD", help="all shards")
    given = arguments.parse_args(argv)
    if given.batch < 1:
        arguments.error(f"--batch: {given.batch} is not a number of images")
    spec = read_spec(EncodeSpec, given.spec)
    if given.merge:
        source, weights = read_record(given.source).digest, weights_digest(given.tokenizer)
        statistics = published(spec.tokenizer, given.tokenizer)
        merge(spec, source, weights, given.merge, given.out, statistics)
    else:
        encode(spec, given.source, given.tokenizer, given.shard, given.out, given.batch)


def encode(
    spec: EncodeSpec, record: Path, weights: Path | None, shard: int, out: Path, batch: int = BATCH
) -> None:
    """Write shard number ``shard`` to ``out``; parameters as on the command line."""
    count = spec.latents.shards
    if not 0 <= shard < count <= spec.dataset.images:
        raise ConfigError(
            f"{spec.name}: latents.shards: shard {shard} of {count} is impossible for "
            f"{spec.dataset.images} images"
        )
    published(spec.tokenizer, weights)  # the merge needs them: refuse now rather than then
    opened = read_record(record)
    start, stop = split(spec.dataset.images, count, shard)
    ranges = [range(low, min(low + batch, stop)) for low in range(start, stop, batch)]
    psnr = None
    if spec.dataset.format == "latents-safetensors":
        views = 2 if spec.latents.flip else 1
        batches = _ahead(PublishedLatents(spec.dataset, spec.tokenizer.shape, views, opened).read, ranges)
    else:
        exact_convolutions()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        coder = open_tokenizer(spec.tokenizer, weights, spec.backbone, device)
        source = open_source(spec.dataset, opened)
        if not spec.tokenizer.plain:
            psnr = decode_check(spec, source, coder, range(start, stop)[:CHECKED])
        batches = _encoded(spec, source, coder, ranges)
    card = ShardCard(
        spec=digest(spec),
        shard=shard,
        start=start,
        stop=stop,
        source=opened.digest,
        weights=weights_digest(weights),
        psnr=psnr,
    )
    write_shard(out, card, _samples(spec, batches, stop - start))


@torch.no_grad()
def decode_check(spec: EncodeSpec, source: Source, coder: Coder, indices: range) -> float:
    """How well stored latents give back their images: mean PSNR in dB, the peak being 2 (from -1 to 1).

    Raises:
        ConfigError: it is below ``latents.psnr``.
    """
    images, _ = source.read(indices.start, indices.stop)
    latents = _store(spec, coder.encode(images, indices).cpu(), indices)
    means = latents[:, : spec.tokenizer.shape[0]]  # all channels, unless moments are stored
    error = (coder.decode(means.float()).cpu() - images).square().mean((1, 2, 3))
    psnr = round((10 * torch.log10(4 / error.clamp_min(1e-10))).mean().item(), 2)
    floor = spec.latents.psnr
    if floor is not None and not psnr >= floor:
        raise ConfigError(
            f"{spec.name}: latents.psnr: images {indices.start} to {indices.stop - 1} come back from the "
            f"tokenizer with {psnr} dB, not {floor}: these are not its weights, or not images it knows"
        )
    print(f"decode check: {psnr} dB on {len(indices)} images")
    return psnr


Batch = tuple[Tensor, Tensor]
"""Images, or latents (n, views, C, H, W), and labels."""


def _ahead(read: Callable[[int, int], Batch], ranges: list[range]) -> Iterator[tuple[range, Batch]]:
    """Read the ranges in order, one of them ahead of the consumer."""
    with ThreadPoolExecutor(1) as reader:
        waiting = [(part, reader.submit(read, part.start, part.stop)) for part in ranges[:1]]
        for part in [*ranges[1:], None]:
            if part is not None:
                waiting.append((part, reader.submit(read, part.start, part.stop)))
            done, result = waiting.pop(0)
            yield done, result.result()


@torch.no_grad()
def _encoded(
    spec: EncodeSpec, source: Source, coder: Coder, ranges: list[range]
) -> Iterator[tuple[range, Batch]]:
    for indices, (images, labels) in _ahead(source.read, ranges):
        views = [coder.encode(images, indices)]
        if spec.latents.flip:
            views.append(coder.encode(images.flip(-1), indices, view=1))
        yield indices, (torch.stack(views, dim=1).cpu(), labels)


def _samples(
    spec: EncodeSpec, batches: Iterator[tuple[range, Batch]], total: int
) -> Iterator[tuple[np.ndarray, int]]:
    with tqdm(total=total, unit="image", desc=spec.name, mininterval=1.0) as bar:
        for indices, (latents, labels) in batches:
            yield from zip(_store(spec, latents, indices).numpy(), labels.tolist())
            bar.update(len(indices))


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


if __name__ == "__main__":
    run(main)
