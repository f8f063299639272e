"""Encode a data set to latent shards, or merge finished shards to a manifest.

    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --shard K --out SHARD
    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --merge SHARD... --out MANIFEST

Shards can be made in any order and on any machines. Each is a contiguous range of the images and
has the same bytes on every run. The merge writes manifest.index.npz beside manifest.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .config import ConfigError, digest, read_spec
from .config.specs import EncodeSpec
from .data.merge import merge, split
from .data.records import read_record
from .data.shards import ShardCard, write_shard
from .data.sources import Source, open_source
from .data.tokenizers import Coder, open_tokenizer, weights_digest
from .stage import parser, run

BATCH = 32
"""Images encoded at once; fixed, because convolutions of other batches may round differently."""


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: sources, tokenizers or shards that are not what the spec says.
        ValueError: latents that are not finite in the stored type.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, required=True, help="record of the fetched images")
    arguments.add_argument(
        "--tokenizer", type=Path, nargs="?", help="model file, or record of fetched weights; none for pixels"
    )
    mode = arguments.add_mutually_exclusive_group(required=True)
    mode.add_argument("--shard", type=int, help="number of the shard to write")
    mode.add_argument("--merge", type=Path, nargs="+", metavar="SHARD", help="all shards")
    given = arguments.parse_args(argv)
    spec = read_spec(EncodeSpec, given.spec)
    if given.merge:
        merge(spec, read_record(given.source).digest, weights_digest(given.tokenizer), given.merge, given.out)
    else:
        encode(spec, given.source, given.tokenizer, given.shard, given.out)


def encode(spec: EncodeSpec, record: Path, weights: Path | None, shard: int, out: Path) -> None:
    """Write shard number ``shard`` to ``out``; parameters as on the command line."""
    count = spec.latents.shards
    if not 0 <= shard < count <= spec.dataset.images:
        raise ConfigError(
            f"{spec.name}: latents.shards: shard {shard} of {count} is impossible for "
            f"{spec.dataset.images} images"
        )
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    coder = open_tokenizer(spec.tokenizer, weights, spec.backbone, device)
    source = open_source(spec.dataset, record)
    start, stop = split(spec.dataset.images, count, shard)
    card = ShardCard(
        spec=digest(spec),
        shard=shard,
        start=start,
        stop=stop,
        source=read_record(record).digest,
        weights=weights_digest(weights),
    )
    write_shard(out, card, _samples(spec, source, coder, start, stop))


@torch.no_grad()
def _samples(
    spec: EncodeSpec, source: Source, coder: Coder, start: int, stop: int
) -> Iterator[tuple[np.ndarray, int]]:
    dtype = getattr(torch, spec.latents.dtype)
    with tqdm(total=stop - start, unit="image", desc=spec.name, mininterval=1.0) as bar:
        for low in range(start, stop, BATCH):
            high = min(low + BATCH, stop)
            images, labels = source.read(low, high)
            indices = range(low, high)
            views = [coder.encode(images, indices)]
            if spec.latents.flip:
                views.append(coder.encode(images.flip(-1), indices, view=1))
            latents = torch.stack(views, dim=1).cpu().to(dtype)
            if list(latents.shape[2:]) != spec.tokenizer.shape:
                raise ConfigError(
                    f"{spec.name}: tokenizer.shape: {spec.tokenizer.shape}, but it makes "
                    f"{list(latents.shape[2:])} of images {list(images.shape[1:])}"
                )
            if not latents.isfinite().all():
                raise ValueError(f"{spec.name}: latents of images {low} to {high - 1} overflow {dtype}")
            yield from zip(latents.numpy(), labels.tolist())
            bar.update(high - low)


if __name__ == "__main__":
    run(main)
