"""The metrics of one cell's images under a protocol."""

from __future__ import annotations

from pathlib import Path

import torch

from ..common.files import sha256
from ..config.settings import Protocol
from ..config.specs import ForeignScoreSpec, ScoreSpec
from ..data.moons import distances
from .distributed_map import distributed_map, is_main, join_processes
from .features import Extractor, FeatureCollector
from .frechet import frechet_distance
from .metrics_file import opened, write_metrics
from .mmd import mmd_squared
from .reference_statistics import Reference, published_file, read_reference


def score_images(
    spec: ScoreSpec | ForeignScoreSpec,
    images: Path,
    weights: Path | None,
    reference: Path,
    out: Path,
    channels_last: bool = False,
) -> None:
    """Write the metrics as JSON. They do not depend on how many processes extract features.

    Args:
        weights: of the extractor, if it has any.
        reference: npz that fewstep.reference made, or the record of a fetched asset that holds mu and sigma.
        channels_last: memory format of the extractor.

    Raises:
        ValueError: images, reference, extractor and protocol that do not belong together.
    """
    protocol = spec.protocol
    device = join_processes()
    archive = opened(images, spec)
    extractor = Extractor(protocol, weights, spec.extractor, device, channels_last)
    if protocol.stored:
        reference = published_file(reference, protocol)
    real = read_reference(reference, protocol, spec.image, extractor.sha256)
    collector = FeatureCollector(protocol, device)
    batches = range(len(archive.sizes))
    for values in distributed_map(lambda batch: torch.from_numpy(archive.images(batch)), extractor, batches):
        dimensions = values[protocol.features].shape[1]
        if dimensions != len(real.mu):
            raise ValueError(
                f"{reference}: statistics of {len(real.mu)} dimensions, but layer "
                f"{protocol.features} of {protocol.extractor} has {dimensions}"
            )
        collector.add(values)
    if not is_main():
        return
    values = compute_metrics(protocol, collector, real)
    write_metrics(
        out,
        spec,
        archive,
        values,
        dimensions=len(real.mu),
        reference_sha256=sha256(reference),
        extractor_sha256=extractor.sha256,
    )


def compute_metrics(protocol: Protocol, ours: FeatureCollector, real: Reference) -> dict[str, float]:
    """The metrics that a protocol asks for, by name.

    With ``feature_scale`` the features of both sides are rescaled alike, so that the reference's covariance
    has that trace; a Fréchet distance then grows by the square of the factor.
    """
    asked = set(protocol.metrics)
    scale = 1.0 if protocol.feature_scale is None else protocol.feature_scale / float(real.sigma.trace())
    values: dict[str, float] = {}
    for name in sorted(asked & {"fid", "fdd", "frechet"}):
        values[name] = scale * frechet_distance(*ours.statistics(), real.mu, real.sigma)
    if asked & {"is", "kid", "precision", "recall"}:
        from . import fidelity  # takes seconds to import
    if "is" in asked:
        values["is"] = fidelity.inception_score(ours.logits)
    if protocol.compares_images:
        assert real.features is not None
        generated, held = (scale**0.5 * side for side in (ours.features, real.features))
        if "kid" in asked:
            values["kid"] = fidelity.kernel_distance(generated, held, protocol.kid)
        if "mmd" in asked:
            values["mmd"] = mmd_squared(generated, held, protocol.mmd.gamma)
        if asked & {"precision", "recall"}:
            both = fidelity.precision_recall(generated, held)
            values |= {name: value for name, value in both.items() if name in asked}
    if protocol.moons is not None:
        away = distances(ours.features.numpy(), protocol.moons.noise) / protocol.moons.noise
        far = {"moon_distance": away.mean(), "off_moons": (away > protocol.moons.far).mean()}
        values |= {name: float(value) for name, value in far.items() if name in asked}
    return values
