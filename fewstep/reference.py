"""Statistics of real images under a protocol: the other side of a Fréchet distance.

python -m fewstep.reference --spec SPEC --latents manifest.json --extractor WEIGHTS --out ref.npz
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from .config import digest, read_spec
from .config.specs import ReferenceSpec
from .data.shards import LatentShards
from .features import Extractor
from .files import atomic
from .images import to_uint8
from .stage import parser, run

CHUNK = 250


def main(argv: list[str] | None = None) -> None:
    """Run the stage: `mu`, `sigma` (float64) and `n` of the images behind pixel shards."""
    arguments = parser(__doc__)
    arguments.add_argument("--latents", type=Path, required=True, help="manifest.json of pixel shards")
    arguments.add_argument("--extractor", type=Path, required=True, help="weights of the extractor")
    given = arguments.parse_args(argv)
    spec = read_spec(ReferenceSpec, given.spec)
    if spec.latents.tokenizer.kind != "pixels":
        raise ValueError(f"{given.spec}: latents {spec.latents.name} are not pixels")
    shards = LatentShards(given.latents)
    shards.check(spec.latents)
    extractor = Extractor(spec.protocol, given.extractor, spec.extractor)
    gaussian, _ = extractor.stats(_images(shards, spec))
    with atomic(given.out) as temporary:
        np.savez(
            temporary,
            mu=gaussian.mean.numpy(),
            sigma=gaussian.cov.numpy(),
            n=gaussian.n,
            shape=shards.shape,
            spec=digest(spec),
            extractor=extractor.sha256,
        )


def _images(shards: LatentShards, spec: ReferenceSpec) -> Iterator[Tensor]:
    for first in tqdm(range(0, len(shards), CHUNK), unit="batch", mininterval=5):
        pixels = shards.read(range(first, min(first + CHUNK, len(shards))))[:, 0]
        yield to_uint8(pixels, spec.protocol.uint8)


if __name__ == "__main__":
    run(main)
