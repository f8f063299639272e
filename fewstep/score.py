"""Score the images of one cell under a protocol.

    python -m fewstep.score --spec SPEC --images images.tar --extractor WEIGHTS --reference REF --out x.json

REF is an npz that fewstep.reference made, or the record of a fetched asset that holds mu and sigma. No
number is written when count, size, dimensions, reference or extractor disagree. The number does not
depend on how many processes extract features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .common.cli import parser, run
from .common.files import sha256, write_text
from .common.provenance import score_digest
from .config import digest, read_spec
from .config.settings import Protocol
from .config.specs import ScoreSpec
from .core.frechet import frechet_distance
from .core.mmd import mmd_squared
from .data.asset_files import read_record
from .features import Extractor, Features, describe
from .images import ImageTar, open_images
from .ranks import Ranks
from .reference import read_statistics


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ValueError: images, reference and protocol that do not belong together.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, required=True)
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    arguments.add_argument("--reference", type=Path, required=True)
    given = arguments.parse_args(argv)
    spec = read_spec(ScoreSpec, given.spec)
    images = open_images(given.images)
    check(images, spec)
    ranks = Ranks()
    extractor = Extractor(spec.protocol, given.extractor, spec.extractor, ranks.device)
    path = given.reference
    if spec.protocol.stored:
        assert spec.protocol.reference is not None
        path, _ = read_record(path).verified(spec.protocol.reference.file)
    reference = read_reference(path, spec, extractor)
    features = Features(spec.protocol, ranks.device)
    with tqdm(total=images.count, unit="image", mininterval=5, disable=not ranks.main) as bar:
        for values in ranks.work(range(len(images.batches)), lambda index: extractor(images.read(index))):
            dimensions = values[spec.protocol.features].shape[1]
            if dimensions != len(reference.mu):
                raise ValueError(
                    f"{path}: statistics of {len(reference.mu)} dimensions, but layer "
                    f"{spec.protocol.features} of {spec.protocol.extractor} has {dimensions}"
                )
            features.add(values)
            bar.update(len(values[spec.protocol.features]))
    if not ranks.main:
        return
    card = images.card
    metrics: dict[str, Any] = {
        "cell": spec.cell.model_dump(mode="json"),
        **compute(spec.protocol, features, reference),
        "images": images.count,
        "evaluations": card["evaluations"],
        "protocol": describe(spec.protocol),
        "reference_sha256": sha256(path),
        "extractor_sha256": extractor.sha256,
        "status": card["model"]["status"],
        "code": card["model"]["code"],
        "score_code": score_digest(card["model"]["backbone"]["kind"]),
        "backbone_kind": card["model"]["backbone"]["kind"],
        "spec": digest(spec),
        "sample": {key: card[key] for key in ("spec", "sampler", "guidance")},
        "model": {key: value for key, value in card["model"].items() if key != "backbone"},
    }
    write_text(given.out, json.dumps(metrics, indent=1, sort_keys=True) + "\n")


def check(images: ImageTar, spec: ScoreSpec) -> None:
    """Refuse images of another cell, protocol, number or size.

    Raises:
        ValueError: naming the file, what differs, and both values.
    """
    protocol, card, model = spec.protocol, images.card, images.card["model"]
    found = {key: card[key] for key in ("images", "labels", "uint8")}
    # Published weights carry no run's name.
    found |= {key: model[key] for key in ("method", "variant", "seed") if key in model}
    asked = {**protocol.model_dump(), **spec.cell.model_dump()}
    for key, value in found.items():
        if value != asked[key]:
            raise ValueError(
                f"{images.path}: {key}: these images have {value}, but {asked[key]} is asked for"
            )
    if images.count != protocol.images:
        raise ValueError(f"{images.path}: {images.count} images, but the protocol wants {protocol.images}")
    if images.shape != tuple(spec.image):
        raise ValueError(f"{images.path}: images are {images.shape}, the data set's {tuple(spec.image)}")


@dataclass(frozen=True)
class Reference:
    """What a protocol compares with."""

    mu: Tensor
    """(F,), float64."""
    sigma: Tensor
    """(F, F), float64."""
    features: Tensor | None
    """(m, F) of real images, where a metric compares images."""


def read_reference(path: Path, spec: ScoreSpec, extractor: Extractor) -> Reference:
    """The reference in an npz.

    Raises:
        ValueError: it lacks what the protocol needs, or was made with other extractor weights or from
            images of another size.
    """
    mu, sigma = read_statistics(path)
    with np.load(path, allow_pickle=False) as content:
        if "extractor" in content and str(content["extractor"]) != str(extractor.sha256):
            raise ValueError(f"{path}: was made with other weights of {spec.protocol.extractor}")
        if "shape" in content and content["shape"].tolist() != spec.image:
            raise ValueError(
                f"{path}: real images are {tuple(content['shape'].tolist())}, not {tuple(spec.image)}"
            )
        features = None
        if spec.protocol.compares_images:
            if "features" not in content:
                raise ValueError(f"{path}: holds no features of real images; make it with fewstep.reference")
            features = torch.from_numpy(content["features"])
            if features.dim() != 2 or features.shape[1] != len(mu):
                found = tuple(features.shape)
                raise ValueError(f"{path}: statistics of {len(mu)} dimensions, but features {found}")
            if not bool(features.isfinite().all()):
                raise ValueError(f"{path}: a feature is NaN or infinite")
    return Reference(mu, sigma, features)


def compute(protocol: Protocol, ours: Features, reference: Reference) -> dict[str, float]:
    """The metrics that a protocol asks for, under their names.

    With ``trace`` the features of both sides are rescaled alike: a Fréchet distance by the square of
    that factor.
    """
    asked = set(protocol.metrics)
    scale = 1.0 if protocol.feature_scale is None else protocol.feature_scale / float(reference.sigma.trace())
    values: dict[str, float] = {}
    if "fid" in asked:
        values["fid"] = scale * frechet_distance(*ours.statistics(), reference.mu, reference.sigma)
    if asked & {"is", "kid", "precision", "recall"}:
        from . import fidelity  # seconds, which points do without
    if "is" in asked:
        values["is"] = fidelity.inception_score(ours.logits)
    if protocol.compares_images:
        assert reference.features is not None
        kept, real = (scale**0.5 * side for side in (ours.kept, reference.features))
        if "kid" in asked:
            values["kid"] = fidelity.kernel_distance(kept, real, protocol.kid)
        if "mmd" in asked:
            values["mmd"] = mmd_squared(kept, real, protocol.mmd.gamma)
        if asked & {"precision", "recall"}:
            both = fidelity.precision_recall(kept, real)
            values |= {name: value for name, value in both.items() if name in asked}
    return values


if __name__ == "__main__":
    run(main)
