"""Sample the images of one cell.

    python -m fewstep.sample --spec SPEC --model model.safetensors [--latents manifest.json]
        [--tokenizer WEIGHTS] --out images.tar

Labels and noise belong to the image's index and are drawn on the CPU, and images are made in chunks of
a fixed size, so that the result does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .backbones import null_label
from .backbones.model_file import check_tokenizer, load_network
from .common.cli import parser, run
from .config import ConfigError, digest, read_spec
from .config.networks import FlowNetwork
from .config.specs import SampleSpec
from .core.guidance import guided_field
from .core.rng import generator
from .core.sampling import evaluations, sample
from .data.manifest import Normalisation, known_normalisation, read_manifest
from .data.tokenizers import open_tokenizer, weights_digest
from .images import finished, write_images
from .ranks import Ranks

CHUNK = 250
"""Images made together. Part of the result: the last bits of a network's output depend on it."""


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a bad spec.
        ValueError: model or latents that do not fit it.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument(
        "--latents", type=Path, nargs="*", default=[], help="manifest.json, if only it has the normalisation"
    )
    arguments.add_argument("--tokenizer", type=Path, nargs="*", default=[], help="weights of the decoder")
    given = arguments.parse_args(argv)
    spec = read_spec(SampleSpec, given.spec)
    if not isinstance(spec.backbone, FlowNetwork):
        raise ConfigError(f"{given.spec}: backbone.kind: {spec.backbone.kind} cannot be sampled from")
    ranks = Ranks()
    net, card = load_network(given.model, spec.backbone)
    net = net.to(ranks.device)
    weights = given.tokenizer[0] if given.tokenizer else None
    normalisation = read_normalisation(spec, given.latents, weights)
    check_tokenizer(card, spec.latents.tokenizer, given.model, weights_digest(weights))
    decoder = open_tokenizer(spec.latents.tokenizer, weights, spec.decoder, ranks.device)
    labels = draw_labels(spec)
    card = {
        "spec": digest(spec),
        "model": card,
        "evaluations": evaluations(spec.sampler, spec.steps, spec.guidance is not None),
        "sampler": spec.sampler.model_dump(mode="json"),
        "guidance": spec.guidance and spec.guidance.model_dump(mode="json"),
        "images": spec.images,
        "labels": spec.labels,
        "uint8": spec.uint8,
    }

    def make(indices: range) -> Tensor:
        y = labels[indices.start : indices.stop].to(ranks.device)
        field = guided_field(
            velocity_beyond(net) if spec.expanded else net, spec.guidance, null_label(spec.backbone), y
        )
        x0 = noise(spec, indices, "start").to(ranks.device)
        latents = sample(spec.sampler, field, x0, spec.steps, lambda step: noise(spec, indices, step))
        images = decoder.decode(normalisation.denormalise(latents))
        if list(images.shape[1:]) != spec.image:
            raise ValueError(
                f"{given.spec}: latents decode to {tuple(images.shape[1:])}, but the data set has "
                f"{tuple(spec.image)}"
            )
        return finished(images, spec.uint8)

    chunks = [range(first, min(first + CHUNK, spec.images)) for first in range(0, spec.images, CHUNK)]
    if not ranks.main:
        ranks.work(chunks, make)
        return
    with write_images(given.out, card) as writer, tqdm(total=spec.images, unit="image", mininterval=5) as bar:
        for images in ranks.work(chunks, make):
            writer.append(images, labels[writer.count : writer.count + len(images)])
            bar.update(len(images))


def read_normalisation(spec: SampleSpec, manifests: Sequence[Path], weights: Path | None) -> Normalisation:
    """How latents are normalised: by a manifest, or without one by the tokenizer's own files.

    Raises:
        ConfigError: there is neither.
        ValueError: a manifest of other latents, or of other tokenizer weights.
    """
    if not manifests:
        return known_normalisation(spec.latents.tokenizer, weights)
    manifest = read_manifest(manifests[0])
    manifest.check(spec.latents, manifests[0])
    if manifest.weights != weights_digest(weights):
        raise ValueError(f"{manifests[0]}: was encoded with other tokenizer weights than {weights}")
    return manifest.normalisation


def velocity_beyond(net: nn.Module) -> Callable[..., Tensor]:
    """A network without a second time that has its velocity at condition 2 - t (FACM's expanded interval).

    Such a network is asked for its velocity, s = t, on the condition on which it was anchored; on t
    itself it gives the average velocity towards the data, s = 1.
    """

    def call(x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return net(x, torch.where(s == t, 2 - t, t), s, y)

    return call


def draw_labels(spec: SampleSpec) -> Tensor:
    """Labels of all images (N,): classes in turn, or uniform by the protocol's seed."""
    if spec.labels == "balanced":
        return torch.arange(spec.images) % spec.latents.classes
    draws = generator(spec.seed, "sample", "labels")
    return torch.randint(spec.latents.classes, (spec.images,), generator=draws)


def noise(spec: SampleSpec, indices: range, purpose: str | int) -> Tensor:
    """Standard normal noise (n, C, H, W), a generator of its own for each image."""
    shape = tuple(spec.latents.shape)
    return torch.stack(
        [torch.randn(shape, generator=generator(spec.seed, "sample", index, purpose)) for index in indices]
    )


if __name__ == "__main__":
    run(main)
