"""What every score has in common: the images that it refuses, and the metrics file that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.files import write_text
from ..common.provenance import score_digest
from ..config import ConfigError, digest
from ..config.base import sealed
from ..config.specs import AnyImageScoreSpec, AnyScoreSpec, ForeignPromptScoreSpec, ForeignSpec
from .foreign_images import ForeignImages, open_foreign
from .image_archive import ImageArchive, open_images

UNTOLD = ("backbone", "sampling")
"""Of a model's card: what stands elsewhere in the metrics, and what is for other samples."""


def opened(path: Path, spec: AnyImageScoreSpec | ForeignSpec) -> ImageArchive | ForeignImages:
    """The images to be scored: those of a cell, or from elsewhere.

    Raises:
        ValueError: a damaged file, or images of another cell, protocol, number or size.
    """
    if isinstance(spec, ForeignSpec):
        if spec.protocol.uint8 == "none":
            raise ConfigError(f"{path}: this protocol is of data that are not images")
        prompts = spec.prompts.prompts if isinstance(spec, ForeignPromptScoreSpec) else 1
        return open_foreign(path, spec.image, spec.protocol.images, prompts)
    archive = open_images(path)
    check_images(archive, spec)
    return archive


def check_images(archive: ImageArchive, spec: AnyImageScoreSpec) -> None:
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
    out: Path,
    spec: AnyImageScoreSpec | ForeignSpec,
    archive: ImageArchive | ForeignImages,
    values: Mapping[str, float],
    **more: Any,
) -> None:
    """Write the metrics of a cell, or of images from elsewhere with their card, as JSON.

    Args:
        values: metric -> value.
        more: what else stands beside them: hashes of all that they depend on.

    Raises:
        ValueError: a value is not finite.
    """
    card = archive.card
    if isinstance(spec, ForeignSpec):
        _check_finite(out, values, archive.count)
        foreign = {
            **values,
            "images": archive.count,
            "protocol": spec.protocol.model_dump(mode="json"),
            **more,
            "status": "from elsewhere",
            "source": card,
            "spec": digest(spec),
            "version": __version__,
        }
        write_text(out, sealed(foreign))
        return
    sample = {key: card[key] for key in ("spec", "sampler", "guidance")}
    write_cell(out, spec, card["model"], values, archive.count, card["evaluations"], sample, **more)


def write_cell(
    out: Path,
    spec: AnyScoreSpec,
    model: Mapping[str, Any],
    values: Mapping[str, float],
    images: int,
    evaluations: int,
    sample: Mapping[str, Any],
    **more: Any,
) -> None:
    """Write the metrics of a cell as JSON.

    Args:
        model: the card of its model.
        values: metric -> value.
        sample: how the model was used.
        more: what else stands beside them.

    Raises:
        ValueError: a value is not finite.
    """
    _check_finite(out, values, images)
    backbone = model["backbone"]["kind"]
    metrics: dict[str, Any] = {
        "cell": spec.cell.model_dump(mode="json"),
        **values,
        "images": images,
        "evaluations": evaluations,
        "protocol": spec.protocol.model_dump(mode="json"),
        **more,
        "status": model["status"],
        "code": model["code"],
        "score_code": score_digest(backbone, spec.protocol.kind),
        "backbone_kind": backbone,
        "spec": digest(spec),
        "sample": sample,
        "model": {key: value for key, value in model.items() if key not in UNTOLD},
    }
    write_text(out, sealed(metrics))


def _check_finite(out: Path, values: Mapping[str, float], images: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{out}: {name} of {images} images is {value}; are they too few for it?")
