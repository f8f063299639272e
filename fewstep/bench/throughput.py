"""Images a second of encode, sample and score, with networks of random weights."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import build
from ..backbones.model_file import save_model
from ..config.backbones import ConvAutoencoder, ConvClassifier, LightningDiT
from ..config.settings import LdmAutoencoder, Protocol, Sampler, Weights
from ..core.guidance import guided_field
from ..core.memory import place
from ..core.rng import generator
from ..data.tokenizers import DEFAULT, Codec, ConvCodec, Decoding, KlCodec, build_ldm_autoencoder
from ..evaluation.features import Extractor, FeatureCollector
from ..evaluation.generation import Options, prepared_velocity
from ..evaluation.quantization import quantize
from ..evaluation.samplers import integrate
from .meters import DEVICE, Case


def encode_cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Images to latents."""
    name, codec, shape = tokenizer(given.large)
    images = random_images(given.batch, shape)

    @torch.no_grad()
    def call() -> None:
        codec.encode(images, range(len(images)))

    return [Case({"case": name}, call, given.batch)]


def sample_cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Noise to bytes."""
    spec = LightningDiT(shape=[4, 4, 4], classes=10, depth=3, width=64, heads=2, patch=2)
    if given.large:
        spec = LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16)
    labels = torch.arange(given.batch, device=DEVICE) % spec.classes
    net = build(spec).eval().requires_grad_(False)
    sampler = Sampler(kind="euler")
    latents = torch.randn(given.batch, *spec.shape, generator=generator(0, "latents")).to(DEVICE)

    def cases(words: str, dtype: str, options: Options) -> list[Case]:
        velocity = prepared_velocity(copy.deepcopy(net), options, DEVICE, dtype)
        decoding = Decoding(getattr(torch, dtype), options.channels_last, options.compile)
        _, codec, _ = tokenizer(given.large, decoding)

        @torch.no_grad()
        def call(steps: int) -> None:
            draws = [torch.randn(spec.shape, generator=generator(0, "start", k)) for k in range(given.batch)]
            field = guided_field(velocity, None, spec.classes, labels)
            start = place(torch.stack(draws), DEVICE)
            x = integrate(sampler, field, start, steps, lambda _: start)
            quantize(codec.decode(x), "round").cpu()

        @torch.no_grad()
        def decode() -> None:
            quantize(codec.decode(latents), "round").cpu()

        return [
            Case({"case": f"euler, 1 steps{words}"}, partial(call, 1), given.batch),
            Case({"case": f"euler, 8 steps{words}"}, partial(call, 8), given.batch),
            Case({"case": f"decode{words}"}, decode, given.batch),
        ]

    found = cases("", "float32", Options())
    if DEVICE.type == "cuda":
        found += cases(", channels last", "float32", Options(channels_last=True))
        found += cases(", captured", "float32", Options(capture=True))
        for words, options in {
            "": Options(channels_last=True),
            ", compiled": Options("inductor", channels_last=True),
            ", captured": Options(capture=True, channels_last=True),
            ", compiled, captured": Options("inductor", capture=True, channels_last=True),
        }.items():
            found += cases(f", bfloat16, channels last{words}", "bfloat16", options)
    return found


def score_cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Bytes to features, and features to their statistics."""
    protocol = Protocol(
        images=given.batch,
        labels="random",
        extractor="conv-classifier",
        features="features",
        logits="logits",
        weights=Weights(method="bench"),
        reference_latents="bench",
    )
    backbone = ConvClassifier(kind="conv-classifier", shape=[1, 8, 8], classes=10, features=64)
    path = folder / "extractor.safetensors"
    save_model(path, build(backbone).state_dict(), backbone, {})
    extractor = Extractor(protocol, path, backbone, DEVICE)
    pictures = quantize(random_images(given.batch, [1, 8, 8]).cpu(), "round")
    values = {"features": torch.randn(given.batch, 2048)}
    statistics = FeatureCollector(protocol.model_copy(update={"metrics": ["fid"]}), DEVICE)
    calls: dict[str, Callable[[], None]] = {
        "conv-classifier 1x8x8": lambda: FeatureCollector(protocol, DEVICE).add(extractor(pictures)),
        "statistics of 2048 features": lambda: statistics.add(values),
    }
    return [Case({"case": name}, call, given.batch) for name, call in calls.items()]


def tokenizer(large: bool, decoding: Decoding = DEFAULT) -> tuple[str, Codec, list[int]]:
    """Name, tokenizer and (C, H, W) of its images: VA-VAE's of ImageNet, or the demo's of digits."""
    if large:
        vae = build_ldm_autoencoder(LdmAutoencoder(), 32)
        return "vavae", KlCodec(vae, "sample", DEVICE, decoding), [3, 256, 256]
    network = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=48, latent=4))
    network = network.eval().requires_grad_(False)
    return "autoencoder 1x8x8", ConvCodec(network, DEVICE, decoding), [1, 8, 8]


def random_images(count: int, shape: list[int]) -> Tensor:
    return torch.rand(count, *shape, device=DEVICE) * 2 - 1


CASES: dict[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "encode": encode_cases,
    "sample": sample_cases,
    "score": score_cases,
}
"""What a benchmark measures, given the command line's options and a folder for its files."""
