"""Score the images of one cell under a protocol.

    python -m fewstep.score --spec SPEC --images images.tar --extractor WEIGHTS --reference REF --out x.json

REF is an npz with `mu` and `sigma`, or the record of a fetched asset that holds one. No number is
written when count, size, dimensions or extractor disagree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .config import digest, read_spec
from .config.settings import Protocol
from .config.specs import ScoreSpec
from .core.frechet import GaussianStats, frechet_distance
from .features import Extractor, asset_file, describe, inception_score
from .files import sha256, write_text
from .images import read_card, read_images
from .stage import parser, run


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ValueError: images, reference and protocol that do not belong together.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, required=True)
    arguments.add_argument("--extractor", type=Path, required=True, help="weights of the extractor")
    arguments.add_argument("--reference", type=Path, required=True)
    given = arguments.parse_args(argv)
    spec = read_spec(ScoreSpec, given.spec)
    card = read_card(given.images)
    check_card(given.images, card, spec)
    reference = given.reference
    if spec.protocol.reference is not None:
        reference = asset_file(reference, spec.protocol.reference.file)
    extractor = Extractor(spec.protocol, given.extractor, spec.extractor)
    mu, sigma, shape = read_reference(reference, extractor)
    gaussian, logits = extractor.stats(_counted(given.images, spec.protocol.images, shape))
    if len(mu) != len(gaussian.mean):
        raise ValueError(
            f"{reference}: {len(mu)} dimensions, but {spec.protocol.features} of "
            f"{spec.protocol.extractor} has {len(gaussian.mean)}"
        )
    metrics: dict[str, Any] = {
        "cell": spec.cell.model_dump(mode="json"),
        "fid": distance(gaussian, mu, sigma, spec.protocol),
        "is": inception_score(logits) if logits else None,
        "images": gaussian.n,
        "evaluations": card["evaluations"],
        "protocol": describe(spec.protocol),
        "reference_sha256": sha256(reference),
        "extractor_sha256": extractor.sha256,
        "status": card["model"]["status"],
        "code": card["model"]["code"],
        "spec": digest(spec),
        "sample": {key: card[key] for key in ("spec", "sampler", "guidance")},
        "model": {key: value for key, value in card["model"].items() if key != "backbone"},
    }
    write_text(given.out, json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def distance(gaussian: GaussianStats, mu: Tensor, sigma: Tensor, protocol: Protocol) -> float:
    """Fréchet distance, in the protocol's units of feature variance."""
    value = frechet_distance(gaussian.mean, gaussian.cov, mu, sigma)
    return value if protocol.trace is None else value * protocol.trace / float(sigma.trace())


def check_card(path: Path, card: dict[str, Any], spec: ScoreSpec) -> None:
    """Refuse images of another cell, or made under another protocol.

    Raises:
        ValueError: naming what differs.
    """
    protocol, model = spec.protocol, card["model"]
    found = {key: card[key] for key in ("images", "labels", "uint8") if key in card}
    # Published weights carry no run's name.
    found |= {key: model[key] for key in ("method", "variant", "seed") if key in model}
    asked = {**spec.cell.model_dump(), **protocol.model_dump()} | {"seed": spec.cell.seed}
    for key, value in found.items():
        if value != asked[key]:
            raise ValueError(f"{path}: {key}: these images have {value}, but {asked[key]} is asked for")


def read_reference(path: Path, extractor: Extractor) -> tuple[Tensor, Tensor, tuple[int, ...] | None]:
    """mu (F,) and sigma (F, F) of an npz, float64, and the shape of its images if it tells.

    Raises:
        ValueError: the file holds no statistics, or was made with other extractor weights.
    """
    with np.load(path, allow_pickle=False) as content:
        if "mu" not in content or "sigma" not in content:
            raise ValueError(f"{path}: holds {sorted(content)}, not mu and sigma")
        if "extractor" in content and str(content["extractor"]) != extractor.sha256:
            raise ValueError(f"{path}: was made with other weights of {extractor.protocol.extractor}")
        shape = tuple(content["shape"].tolist()) if "shape" in content else None
        mu, sigma = (torch.from_numpy(content[name]).double() for name in ("mu", "sigma"))
        return mu, sigma, shape


def _counted(path: Path, expected: int, shape: tuple[int, ...] | None) -> Iterator[Tensor]:
    """The batches of a tar.

    Raises:
        ValueError: images of another shape than the first or the reference's, or, at the end, any
            other number of them than ``expected``.
    """
    found = 0
    with tqdm(total=expected, unit="image", mininterval=5) as bar:
        for images in read_images(path):
            shape = shape or tuple(images.shape[1:])
            if images.shape[1:] != shape:
                raise ValueError(f"{path}: images {tuple(images.shape[1:])}, not {shape} like the reference")
            found += len(images)
            bar.update(len(images))
            yield images
    if found != expected:
        raise ValueError(f"{path}: {found} images, but the protocol wants {expected}")


if __name__ == "__main__":
    run(main)
