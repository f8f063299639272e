"""The real images' side of a protocol: statistics, and their features where a metric compares images.

    python -m fewstep.reference --spec SPEC --latents manifest.json --extractor WEIGHTS --out ref.npz
    python -m fewstep.reference --spec SPEC --published RECORD --extractor WEIGHTS --out ref.npz

From pixel shards all is computed here. A published reference keeps its own mu and sigma, bit for bit;
only the features of its images (`arr_0`) are computed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .common.cli import parser, run
from .common.files import atomic
from .config import digest, read_spec
from .config.specs import ReferenceSpec
from .data.asset_files import read_record
from .data.shards import LatentShards
from .features import Extractor, Features
from .images import finished
from .ranks import Ranks

CHUNK = 250


def main(argv: list[str] | None = None) -> None:
    """Run the stage: `mu`, `sigma` (float64), `n`, `shape` (C, H, W) and perhaps `features`, float32.

    Raises:
        ValueError: images or statistics that are not there, or not of the protocol.
    """
    arguments = parser(__doc__)
    arguments.add_argument(
        "--latents", type=Path, nargs="*", default=[], help="manifest.json of pixel shards"
    )
    arguments.add_argument("--published", type=Path, nargs="*", default=[], help="record of a reference")
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    given = arguments.parse_args(argv)
    spec = read_spec(ReferenceSpec, given.spec)
    if len(given.latents) + len(given.published) != 1 or bool(given.latents) != (spec.latents is not None):
        raise ValueError(f"{given.spec}: give {'--latents' if spec.latents else '--published'} alone, once")
    published: Path | None = None
    if spec.latents is None:
        assert spec.protocol.reference is not None
        published, _ = read_record(given.published[0]).verified(spec.protocol.reference.file)
        read, count = npz_images(published)
    else:
        read, count = shard_images(given.latents[0], spec)
    ranks = Ranks()
    extractor = Extractor(spec.protocol, given.extractor, spec.extractor, ranks.device)
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    features = Features(spec.protocol, ranks.device)
    results = ranks.work(chunks, lambda chunk: extractor(read(chunk)))
    for values in tqdm(results, total=len(chunks), unit="batch", mininterval=5, disable=not ranks.main):
        features.add(values)
    if not ranks.main:
        return
    mu, sigma = features.statistics() if published is None else read_statistics(published)
    content = {"features": features.kept.numpy()} if spec.protocol.compares_images else {}
    with atomic(given.out) as temporary:
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


def read_statistics(path: Path) -> tuple[Tensor, Tensor]:
    """mu (F,) and sigma (F, F) of an npz, as they are stored there, in float64.

    Raises:
        ValueError: the file holds none, or they disagree or are not finite.
    """
    with np.load(path, allow_pickle=False) as content:
        if "mu" not in content or "sigma" not in content:
            raise ValueError(f"{path}: holds {sorted(content)}, not mu and sigma")
        mu, sigma = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
    if mu.dim() != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} do not belong together"
        )
    if not bool(mu.isfinite().all() and sigma.isfinite().all()):
        raise ValueError(f"{path}: mu or sigma holds NaN or infinity")
    return mu, sigma


def shard_images(manifest: Path, spec: ReferenceSpec) -> tuple[Callable[[range], Tensor], int]:
    """Reader of images (n, C, H, W) behind shards of pixels or points, and their number."""
    assert spec.latents is not None
    if not spec.latents.tokenizer.plain:
        raise ValueError(f"{manifest}: latents {spec.latents.name} are not pixels")
    shards = LatentShards(manifest)
    shards.check(spec.latents)
    return lambda chunk: finished(shards.read(chunk)[:, 0], spec.protocol.uint8), len(shards)


def npz_images(path: Path) -> tuple[Callable[[range], Tensor], int]:
    """Reader of the images `arr_0` of an npz, uint8 (n, H, W, C) there, and their number.

    They are read in place: ADM's 10,000 take 2 GB.

    Raises:
        ValueError: no such array, or not of uint8 images.
    """
    with zipfile.ZipFile(path) as archive:
        if "arr_0.npy" not in archive.namelist():
            names = ", ".join(sorted(archive.namelist()))
            raise ValueError(
                f"{path}: holds {names} and no images (arr_0); take kid, precision and recall out of "
                f"the protocol's metrics, or name another reference"
            )
    stream = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 - read as long as the reader lives
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.uint8 or len(shape) != 4:
        raise ValueError(f"{path}: arr_0 is {dtype} {shape}, not uint8 (n, H, W, C)")
    start, size = stream.tell(), int(np.prod(shape[1:]))

    def read(chunk: range) -> Tensor:
        stream.seek(start + chunk.start * size)
        content = bytearray(stream.read(len(chunk) * size))
        return (
            torch.frombuffer(content, dtype=torch.uint8).view(-1, *shape[1:]).permute(0, 3, 1, 2).contiguous()
        )

    return read, shape[0]


if __name__ == "__main__":
    run(main)
