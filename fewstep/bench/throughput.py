"""Images a second of encode, sample and score, with networks of random weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..backbones import build
from ..backbones.model_file import save_model
from ..config.settings import (
    ConvAutoencoder,
    ConvClassifier,
    LdmAutoencoder,
    LightningDiT,
    Protocol,
    Sampler,
    Weights,
)
from ..core.guidance import guided_field
from ..core.rng import generator
from ..data.tokenizers import Codec, ConvCodec, KlCodec, build_ldm_autoencoder
from ..evaluation.features import Extractor, FeatureCollector
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
    net = build(spec).to(DEVICE).eval().requires_grad_(False)
    _, codec, _ = tokenizer(given.large)
    labels = torch.arange(given.batch, device=DEVICE) % spec.classes

    def case(steps: int) -> Case:
        @torch.no_grad()
        def call() -> None:
            draws = [torch.randn(spec.shape, generator=generator(0, "start", k)) for k in range(given.batch)]
            field = guided_field(net, None, spec.classes, labels)
            sampler = Sampler(kind="euler")
            x = integrate(sampler, field, torch.stack(draws).to(DEVICE), steps, lambda _: torch.stack(draws))
            quantize(codec.decode(x), "round").cpu()

        return Case({"case": f"euler, {steps} steps"}, call, given.batch)

    latents = torch.randn(given.batch, *spec.shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    @torch.no_grad()
    def decode() -> None:
        quantize(codec.decode(latents), "round").cpu()

    return [case(1), case(8), Case({"case": "decode"}, decode, given.batch)]


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


def tokenizer(large: bool) -> tuple[str, Codec, list[int]]:
    """Name, tokenizer and (C, H, W) of its images: VA-VAE's of ImageNet, or the demo's of digits."""
    if large:
        return "vavae", KlCodec(build_ldm_autoencoder(LdmAutoencoder(), 32), "sample", DEVICE), [3, 256, 256]
    network = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=48, latent=4))
    return "autoencoder 1x8x8", ConvCodec(network.eval().requires_grad_(False), DEVICE), [1, 8, 8]


def random_images(count: int, shape: list[int]) -> Tensor:
    return torch.rand(count, *shape, device=DEVICE) * 2 - 1


CASES: dict[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "encode": encode_cases,
    "sample": sample_cases,
    "score": score_cases,
}
"""What a benchmark measures, given the command line's options and a folder for its files."""
