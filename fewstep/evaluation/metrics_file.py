"""What every score has in common: the images that it refuses, and the metrics file that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.files import write_text
from ..common.provenance import score_digest
from ..config import digest
from ..config.base import sealed
from ..config.specs import AnyScoreSpec
from .image_archive import ImageArchive


def check_images(archive: ImageArchive, spec: AnyScoreSpec) -> None:
    """Refuse images of another cell, protocol, number or size.

    Raises:
        ValueError: naming the file, what differs, and both values.
    """
    card, protocol, image = archive.card, spec.protocol, tuple(spec.sample.image)
    fields = type(spec.sample).model_fields
    unsaid = {name: field.default for name, field in fields.items() if field.exclude_if}
    asked = unsaid | spec.sample.model_dump(mode="json")
    pairs = [(key, (unsaid | card).get(key), value) for key, value in asked.items()]
    # Published weights carry no run's name.
    cell, model = spec.cell.model_dump(), card["model"]
    pairs += [(f"model.{key}", model.get(key, cell[key]), cell[key]) for key in ("method", "variant", "seed")]
    for key, found, wanted in pairs:
        if found != wanted:
            raise ValueError(f"{archive.path}: {key}: these images have {found}, but {wanted} is asked for")
    if archive.count != protocol.images:
        raise ValueError(f"{archive.path}: {archive.count} images, but the protocol wants {protocol.images}")
    if archive.shape != image:
        raise ValueError(f"{archive.path}: images are {archive.shape}, but the data set's are {image}")


def write_metrics(
    out: Path, spec: AnyScoreSpec, archive: ImageArchive, values: Mapping[str, float], **more: Any
) -> None:
    """Write the metrics of a cell as JSON.

    Args:
        values: metric -> value.
        more: what else stands beside them: hashes of all that they depend on.

    Raises:
        ValueError: a value is not finite.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{out}: {name} of {archive.count} images is {value}; are they too few for it?")
    card = archive.card
    backbone = card["model"]["backbone"]["kind"]
    metrics: dict[str, Any] = {
        "cell": spec.cell.model_dump(mode="json"),
        **values,
        "images": archive.count,
        "evaluations": card["evaluations"],
        "protocol": spec.protocol.model_dump(mode="json"),
        **more,
        "status": card["model"]["status"],
        "code": card["model"]["code"],
        "score_code": score_digest(backbone, spec.protocol.kind),
        "backbone_kind": backbone,
        "spec": digest(spec),
        "sample": {key: card[key] for key in ("spec", "sampler", "guidance")},
        "model": {key: value for key, value in card["model"].items() if key != "backbone"},
    }
    write_text(out, sealed(metrics))
