"""Real images to stand beside samples: the first of each class or caption in a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..config import ConfigError
from ..config.specs import ExamplesSpec
from ..data.asset_files import read_record
from ..data.captions import read_captions, read_prompts
from ..data.sources import DataSource, open_source
from .image_archive import write_images
from .quantization import quantize

CHUNK = 256
"""Labels that are read at a time."""


def write_examples(spec: ExamplesSpec, record: Path, prompts: Path | None, out: Path) -> None:
    """Write a tar of images, uint8, with their labels; a label of which there is no image is left out.

    Args:
        record: of the data set's asset.
        prompts: record of the prompts' asset, if labels are numbers of prompts.

    Raises:
        ConfigError: prompts without their record; damaged files, or as for `open_source`, `read_captions` and
            `read_prompts`.
    """
    source = open_source(spec.dataset, read_record(record))
    places = first_of_each(source, wanted_classes(spec, record, prompts))
    shape = (spec.dataset.channels, spec.dataset.resolution, spec.dataset.resolution)
    images = np.empty((len(places), *shape), np.uint8)
    for number, place in enumerate(places.values()):
        images[number] = quantize(source.read(place, place + 1)[0], "round")[0].numpy()
    card = {**spec.model_dump(mode="json"), "uint8": "round", "places": list(places.values())}
    write_images(out, card, [(images, np.array([*places], np.int64))])


def wanted_classes(spec: ExamplesSpec, record: Path, prompts: Path | None) -> dict[int, set[int]]:
    """Label of an example -> classes of the data set that show it: itself, or those with its prompt's text.

    Raises:
        ConfigError: as for `write_examples`.
    """
    if spec.prompts is None:
        return {label: {label} for label in spec.labels}
    if prompts is None:
        raise ConfigError(f"{record}: examples of prompts are asked for; pass --prompts")
    captions: dict[str, set[int]] = {}
    for number, caption in enumerate(read_captions(spec.dataset, record)):
        captions.setdefault(caption, set()).add(number)
    texts = [prompt["prompt"] for prompt in read_prompts(spec.prompts, prompts)]
    return {label: captions.get(texts[label], set()) for label in spec.labels}


def first_of_each(source: DataSource, wanted: dict[int, set[int]]) -> dict[int, int]:
    """Label of an example -> place of its image, in the order of the labels, without those not found.

    Reading stops when all are found.
    """
    missing = {label: classes for label, classes in wanted.items() if classes}
    found: dict[int, int] = {}
    for start in range(0, len(source), CHUNK):
        if not missing:
            break
        for place, own in enumerate(source.labels(start, start + CHUNK), start):
            for label in [label for label, classes in missing.items() if own in classes]:
                found[label] = place
                del missing[label]
    return {label: found[label] for label in wanted if label in found}
