"""The images of one cell.

Labels and noise belong to the image's index and are drawn on the CPU, and images are made in chunks of a
fixed size, so that the result does not depend on the number of processes. Finished chunks are kept beside
the output until it is written: a stage that was stopped goes on from there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import null_label
from ..backbones.model_file import check_tokenizer, load_network
from ..common.provenance import score_digest
from ..config import ConfigError, digest
from ..config.settings import FlowNetwork
from ..config.specs import SampleSpec
from ..core.guidance import guided_field
from ..core.rng import generator
from ..data.manifest import Normalisation, known_normalisation, read_manifest
from ..data.tokenizers import open_tokenizer, weights_digest
from .distributed_map import distributed_map, is_main, join_processes
from .image_archive import open_images, write_images
from .quantization import quantize
from .samplers import evaluations_per_image, integrate

CHUNK = 250
"""Images made together. Part of the result: the last bits of a network's output depend on it."""


def generate_images(
    spec: SampleSpec, model: Path, out: Path, manifest: Path | None = None, weights: Path | None = None
) -> None:
    """Write a tar of images, sampled from a model file.

    Args:
        manifest: of the latents; needed if the tokenizer's own files do not say how latents are normalised.
        weights: of the tokenizer.

    Raises:
        ConfigError: the network is not one that can be sampled from, or the normalisation is not known.
        ValueError: model, latents or tokenizer do not belong together, or an image holds NaN.
    """
    if not isinstance(spec.backbone, FlowNetwork):
        raise ConfigError(f"{model}: backbone.kind: {spec.backbone.kind} cannot be sampled from")
    device = join_processes()
    net, model_card = load_network(model, spec.backbone)
    net = net.to(device)
    normalisation = read_normalisation(spec, manifest, weights)
    tokenizer_digest = weights_digest(weights)
    check_tokenizer(model_card, spec.latents.tokenizer, model, tokenizer_digest)
    decoder = open_tokenizer(spec.latents.tokenizer, weights, spec.decoder, device)
    labels = image_labels(spec)
    unlabelled = null_label(spec.backbone)
    velocity = expanded_interval_velocity(net) if spec.expanded else net

    def make(indices: range) -> Tensor:
        y = labels[indices.start : indices.stop].to(device)
        field = guided_field(velocity, spec.guidance, unlabelled, y)
        x0 = image_noise(spec, indices, "start").to(device)
        latents = integrate(
            spec.sampler, field, x0, spec.steps, lambda step: image_noise(spec, indices, step)
        )
        images = decoder.decode(normalisation.denormalise(latents))
        if list(images.shape[1:]) != spec.image:
            raise ValueError(
                f"{model}: latents decode to {tuple(images.shape[1:])}, but the data set has "
                f"{tuple(spec.image)}"
            )
        return quantize(images, spec.uint8)

    owner = {
        "spec": digest(spec),
        "model": model_card["sha256"],
        "tokenizer": tokenizer_digest,
        "normalisation": normalisation.model_dump(),
        "code": score_digest(spec.backbone.kind),
    }
    kept = KeptChunks(out, owner)
    chunks = [range(first, min(first + CHUNK, spec.images)) for first in range(0, spec.images, CHUNK)]
    batches = distributed_map(partial(kept.take, make), chunks)
    if not is_main():
        return
    card = {
        **spec.model_dump(mode="json"),
        "spec": digest(spec),
        "model": model_card,
        "evaluations": evaluations_per_image(spec.sampler, spec.steps, spec.guidance is not None),
    }
    parts = zip(batches, labels.split(CHUNK), strict=True)
    write_images(out, card, ((images.numpy(), part.numpy()) for images, part in parts))
    shutil.rmtree(kept.folder)


class KeptChunks:
    """Finished chunks of an archive that is being made, in a folder beside it.

    Args:
        out: the archive.
        owner: all that the images depend on; chunks of another owner are removed.
    """

    def __init__(self, out: Path, owner: Mapping[str, Any]) -> None:
        text = json.dumps(owner, sort_keys=True)
        self.folder = out.with_name(f"{out.stem}.chunks-{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        if is_main():
            for other in out.parent.glob(f"{glob.escape(out.stem)}.chunks-*"):
                if other != self.folder:
                    print(f"{other}: images of another model, spec or code discarded")
                    shutil.rmtree(other)
            self.folder.mkdir(parents=True, exist_ok=True)

    def take(self, make: Callable[[range], Tensor], indices: range) -> Tensor:
        """The images (n, C, H, W) of a chunk, on the CPU: kept, or made by ``make``."""
        path = self.folder / f"{indices.start:08d}.tar"
        if path.exists():
            try:
                return torch.from_numpy(open_images(path).images(0))
            except ValueError as error:
                print(f"{error}: made again")
        images = make(indices).cpu()
        card = {"uint8": "none" if images.dtype == torch.float32 else "bytes"}
        write_images(path, card, [(images.numpy(), np.array(indices))])
        return images


def read_normalisation(spec: SampleSpec, manifest: Path | None, weights: Path | None) -> Normalisation:
    """How latents are normalised: by a manifest, or without one by the tokenizer's own files.

    Raises:
        ConfigError: neither says it.
        ValueError: a manifest of other latents, or of other tokenizer weights.
    """
    if manifest is None:
        return known_normalisation(spec.latents.tokenizer, weights)
    found = read_manifest(manifest)
    found.check(spec.latents, manifest)
    if found.weights != weights_digest(weights):
        raise ValueError(f"{manifest}: was encoded with other tokenizer weights than {weights}")
    return found.normalisation


def expanded_interval_velocity(net: nn.Module) -> Callable[..., Tensor]:
    """A network of FACM's expanded time interval, with its velocity at s = t.

    Such a network has no second time. On condition 2 - t it returns the velocity at t; on condition t, the
    average velocity from t to s = 1.
    """

    def call(x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        velocity: Tensor = net(x, torch.where(s == t, 2 - t, t), s, y)
        return velocity

    return call


def image_labels(spec: SampleSpec) -> Tensor:
    """Labels of all images, int64 (N,): classes in turn, or uniform by the protocol's seed."""
    if spec.labels == "balanced":
        return torch.arange(spec.images) % spec.latents.classes
    draws = generator(spec.seed, "sample", "labels")
    return torch.randint(spec.latents.classes, (spec.images,), generator=draws)


def image_noise(spec: SampleSpec, indices: range, purpose: str | int) -> Tensor:
    """Standard normal noise (n, C, H, W), drawn by a random generator of its own for each image.

    ``purpose`` is ``start``, or the number of the step that adds noise.
    """
    shape = tuple(spec.latents.shape)
    return torch.stack(
        [torch.randn(shape, generator=generator(spec.seed, "sample", index, purpose)) for index in indices]
    )
