"""The images of one cell.

Labels and noise belong to the image's index and are drawn on the CPU, and images are made in chunks of a
fixed size, so that the result does not depend on the number of processes. Finished chunks are kept beside
the output until it is written: a stage that was stopped goes on from there.

While a chunk is made nothing waits for a GPU: the chunk before is copied and written meanwhile. A GPU whose
memory is short makes a chunk in parts, which moves the last bits of a network's output and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones import use_text
from ..backbones.model_file import check_text, check_tokenizer, load_network
from ..common.provenance import sampling_digest
from ..config import ConfigError, digest
from ..config.backbones import FlowNetwork
from ..config.specs import SampleSpec
from ..core.capture import WARM_UP, CapturedNetwork, CapturedSteps
from ..core.compilation import check_compiler, compile_blocks
from ..core.memory import FittingBatches, free_memory
from ..core.precision import cast_blocks
from ..core.rng import generator
from ..data.manifest import known_normalisation, read_manifest
from ..data.normalisation import Normalisation
from ..data.text_store import TextStore, open_text, read_captions_of
from ..data.tokenizers import Decoding, open_tokenizer, weights_digest
from .distributed_map import is_main, join_processes
from .generator import CHUNK, ImageSampler, Velocity, expanded_interval_velocity, refuse_inner_times
from .kept_chunks import write_in_chunks
from .samplers import check_network, evaluations_per_image


@dataclass(frozen=True)
class Options:
    """How a device is used: not part of the spec, as it moves the last bits of images alone."""

    compile: str = ""
    """Backend of torch.compile for the network's blocks and the decoder, or "" for none."""
    capture: bool = False
    """Replay the network as a CUDA graph, one for each number of rows."""
    channels_last: bool = False
    """Memory format of the decoder's convolutions."""


PLAIN = Options()


def generate_images(
    spec: SampleSpec,
    model: Path,
    out: Path,
    manifest: Path | None = None,
    weights: Path | None = None,
    options: Options = PLAIN,
    base: Path | None = None,
    text: Path | None = None,
) -> None:
    """Write a tar of images, sampled from a model file.

    Args:
        manifest: of the latents; needed if the tokenizer's own files do not say how latents are normalised.
        weights: of the tokenizer.
        base: model file that the weights, adapters, belong to.
        text: manifest of the text store with the prompts, for a network that is conditioned on captions.

    Raises:
        ConfigError: the network is not one that can be sampled from, or the normalisation is not known.
        ValueError: model, base, prompts, latents or tokenizer do not belong together, an image holds NaN, a
            CUDA graph is asked for without a GPU, or compilation without a compiler.
    """
    if not isinstance(spec.backbone, FlowNetwork):
        raise ConfigError(f"{model}: backbone.kind: {spec.backbone.kind} cannot be sampled from")
    check_network(spec.sampler, spec.backbone, str(model))
    refuse_inner_times(spec.backbone, spec.sampler, spec.steps, str(model))
    device = join_processes()
    if options.capture and device.type != "cuda":
        raise ValueError("--capture: a CUDA graph needs a GPU")
    check_compiler("--compile", options.compile, device.type)
    net, model_card = load_network(model, spec.backbone, base)
    store = open_prompts(spec, text, device)
    captions: list[str] = []
    if store is not None and text is not None:
        check_text(model_card, store.card, model)
        use_text(net, store)
        captions = read_captions_of(text)
    normalisation = read_normalisation(spec, manifest, weights)
    tokenizer_digest = weights_digest(weights)
    check_tokenizer(model_card, spec.latents.tokenizer, model, tokenizer_digest)
    sampler = open_sampler(spec, net, normalisation, weights, options, device, str(model))
    labels = image_labels(spec)
    release = sampler.velocity.forget if isinstance(sampler.velocity, CapturedNetwork) else None
    sampling = FittingBatches("sampling", CHUNK, release)

    def latents(part: range) -> Tensor:
        y = labels[part.start : part.stop]
        if store is not None:
            store.load(y)
        return sampler.latents(part, y)

    owner = {
        "spec": digest(spec),
        "model": model_card["sha256"],
        "tokenizer": tokenizer_digest,
        "normalisation": normalisation.model_dump(),
        "code": sampling_digest(spec.backbone.kind),
        "text": store.digest if store else None,
    }
    card = {
        **spec.model_dump(mode="json"),
        "spec": digest(spec),
        "model": model_card,
        "evaluations": evaluations_per_image(spec.sampler, spec.steps, spec.guidance is not None),
    }
    if store is not None:
        shown = sorted(set(labels.tolist()))
        card |= {"text_store": store.card, "captions": {label: captions[label] for label in shown}}
    if device.type == "cuda" and is_main():
        print(f"sampling: {CHUNK} images at a time; {free_memory(device)}")
    write_in_chunks(
        out,
        owner,
        card,
        labels,
        CHUNK,
        lambda indices: sampler.images(torch.cat(sampling(latents, indices))),
        device,
    )


def open_prompts(spec: SampleSpec, text: Path | None, device: torch.device) -> TextStore | None:
    """The text store with the prompts of a spec; None where the network knows no captions.

    Raises:
        ConfigError: the spec has prompts, and no store is given; a store of other captions.
    """
    if spec.text is None:
        return None
    if text is None:
        raise ConfigError(f"{spec.text.name}: the network is conditioned on captions; pass --text")
    return open_text(text, spec.text, device)


def open_sampler(
    spec: SampleSpec,
    net: nn.Module,
    normalisation: Normalisation,
    weights: Path | None,
    options: Options,
    device: torch.device,
    name: str,
) -> ImageSampler:
    """What makes the images of a spec by a network of it.

    Args:
        weights: of the tokenizer.
        name: of the network's file, for messages.

    Raises:
        ValueError: the tokenizer's weights do not fit.
    """
    assert isinstance(spec.backbone, FlowNetwork)
    velocity = prepared_velocity(net, options, device, spec.network_dtype, spec.expanded)
    decoding = Decoding(getattr(torch, spec.decoder_dtype), options.channels_last, options.compile)
    return ImageSampler(
        velocity=velocity,
        null=spec.backbone.null,
        shape=spec.latents.shape,
        sampler=spec.sampler,
        guidance=spec.guidance,
        steps=spec.steps,
        seed=spec.seed,
        codec=open_tokenizer(spec.latents.tokenizer, weights, spec.decoder, device, decoding),
        normalisation=normalisation,
        image=spec.image,
        uint8=spec.uint8,
        device=device,
        name=name,
    )


def prepared_velocity(
    net: nn.Module, options: Options, device: torch.device, dtype: str, expanded: bool = False
) -> Velocity:
    """The network as it is sampled from: on the device, in its dtype, compiled and captured if asked for.

    Args:
        dtype: "float32", or what autocast computes in.
        expanded: the network is one of `expanded_interval_velocity`.
    """
    net = net.to(device)
    if options.compile:
        compile_blocks(net, options.compile)
    if dtype != "float32":
        half = getattr(torch, dtype)
        cast_blocks(net, half)
        net.forward = torch.autocast(device.type, half)(net.forward)
    velocity = torch.no_grad()(expanded_interval_velocity(net) if expanded else net.__call__)
    return CapturedNetwork(velocity, CapturedSteps(device, WARM_UP)) if options.capture else velocity


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


def image_labels(spec: SampleSpec) -> Tensor:
    """Labels of all images, int64 (N,): classes or prompts in turn, or uniform by the protocol's seed."""
    classes = spec.latents.classes if spec.text is None else spec.text.captions
    if spec.labels == "balanced":
        return torch.arange(spec.images) % classes
    draws = generator(spec.seed, "sample", "labels")
    return torch.randint(classes, (spec.images,), generator=draws)
