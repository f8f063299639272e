"""Images or latents a second of encode, load, sample and score, with networks of random weights.

Speed does not depend on weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import build
from ..backbones.model_file import save_model
from ..config import digest
from ..config.settings import (
    Backbone,
    ConvAutoencoder,
    ConvClassifier,
    Dataset,
    Latents,
    LdmAutoencoder,
    LightningDiT,
    Protocol,
    Sampler,
    Tokenizer,
    Weights,
)
from ..config.specs import EncodeSpec
from ..core.guidance import guided_field
from ..core.rng import generator
from ..data.asset_files import RecordBody, read_record
from ..data.encoding import merge_shards
from ..data.loader import Loader
from ..data.shards import LatentShards, ShardCard, write_shard
from ..data.tokenizers import Codec, ConvCodec, IdentityCodec, KlCodec, build_ldm_autoencoder
from ..evaluation.features import Extractor, FeatureCollector
from ..evaluation.quantization import quantize
from ..evaluation.samplers import integrate
from .meters import DEVICE, Call, Case, Stopwatch

StoredType = Literal["float16", "float32"]


def encode_cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Tokenizers: images to latents."""
    digits = random_images(given.batch, 1, 8)
    small: dict[str, tuple[Codec, Tensor]] = {
        "pixels 1x8x8": (IdentityCodec(), digits),
        "autoencoder 1x8x8": (small_codec(), digits),
        "vavae, small, 3x32x32": (vavae_codec(False), random_images(given.batch, 3, 32)),
    }
    large = {"vavae": (vavae_codec(True), random_images(given.batch, 3, 256))} if given.large else {}

    def case(name: str, codec: Codec, images: Tensor) -> Case:
        @torch.no_grad()
        def call() -> None:
            codec.encode(images, range(len(images)))

        return Case(name, call, len(images), "images")

    return [case(name, *each) for name, each in (large or small).items()]


def load_cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Training batches: whole, and the parts that they are made of. Always on the CPU."""
    small = random_shards(folder / "digits", [4, 4, 4], "float32", 1797, flip=False)
    large = random_shards(folder / "vavae", [32, 16, 16], "float16", 2048, flip=True)
    return [
        *_batch_cases("digits 4x4x4 float32", small, given.batch),
        *_batch_cases("VA-VAE 32x16x16 float16", large, given.batch),
    ]


def _batch_cases(name: str, shards: LatentShards, batch: int) -> list[Case]:
    loader = Loader(shards, seed=0, batch=batch)
    steps = max(1, 1024 // batch)
    indices = [torch.randint(len(shards), (batch,)) for _ in range(steps)]
    raw = shards.read(indices[0], torch.zeros(batch, dtype=torch.int64))
    noise = torch.empty(raw.shape)
    position = iter(range(1 << 62))

    def repeated(call: Callable[[int], Any]) -> Call:
        def calls() -> None:
            for k in range(steps):
                call(k)

        return calls

    def draw_noise(_: int) -> None:
        for row in noise:
            row.normal_(generator=generator(0, "noise", next(position)))

    parts: dict[str, Callable[[int], Any]] = {
        "batches": lambda _: loader.rows(next(position), slice(0, batch)),
        "read": lambda k: shards.read(indices[k], torch.zeros(batch, dtype=torch.int64)),
        "normalise": lambda _: shards.normalise(raw),
        "noise": draw_noise,
    }
    return [Case(f"{name}: {part}", repeated(call), steps * batch, "latents") for part, call in parts.items()]


def sample_cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Noise to bytes, and the share of the network's own passes."""
    net, spec = random_network(given.large)
    net.eval().requires_grad_(False)
    codec = vavae_codec(True) if given.large else small_codec()
    labels = torch.arange(given.batch, device=DEVICE) % spec.classes

    def case(steps: int) -> Case:
        stopwatch = Stopwatch()

        def timed(*inputs: Tensor) -> Tensor:
            with stopwatch():
                return net(*inputs)

        @torch.no_grad()
        def call() -> None:
            draws = [torch.randn(spec.shape, generator=generator(0, "start", k)) for k in range(given.batch)]
            field = guided_field(timed, None, spec.classes, labels)
            sampler = Sampler(kind="euler")
            x = integrate(sampler, field, torch.stack(draws).to(DEVICE), steps, lambda _: torch.stack(draws))
            quantize(codec.decode(x), "round").cpu()

        return Case(f"euler, {steps} steps", call, given.batch, "images", stopwatch, "in the network")

    return [case(1), case(8)]


def score_cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Bytes to features and their statistics, and the share of the extractor."""
    protocol = Protocol(
        images=given.batch,
        labels="random",
        extractor="conv-classifier",
        features="features",
        logits="logits",
        weights=Weights(method="bench"),
        reference_latents="bench",
    )
    backbone: Backbone = ConvClassifier(kind="conv-classifier", shape=[1, 8, 8], classes=10, features=64)
    path = folder / "extractor.safetensors"
    save_model(path, build(backbone).state_dict(), backbone, {})
    extractor = Extractor(protocol, path, backbone, DEVICE)
    pictures = quantize(random_images(given.batch, 1, 8).cpu(), "round")
    values = {"features": torch.randn(given.batch, 2048)}
    wide = protocol.model_copy(update={"metrics": ["fid"]})
    stopwatch = Stopwatch()

    def extract() -> None:
        features = FeatureCollector(protocol, DEVICE)
        with stopwatch():
            found = extractor(pictures)
        features.add(found)

    statistics = FeatureCollector(wide, DEVICE)
    return [
        Case("conv-classifier 1x8x8", extract, given.batch, "images", stopwatch, "in the extractor"),
        Case("statistics of 2048 features", lambda: statistics.add(values), given.batch, "images"),
    ]


def random_shards(folder: Path, shape: list[int], dtype: StoredType, images: int, flip: bool) -> LatentShards:
    """Shards of noise, as the encode stage would write them."""
    spec = EncodeSpec(
        name="bench",
        dataset=Dataset(asset="none", format="imagefolder", resolution=8, classes=10, images=images),
        tokenizer=Tokenizer(kind="pixels", shape=shape, statistics="computed"),
        latents=Latents(dataset="bench", tokenizer="bench", shards=1, flip=flip, dtype=dtype),
    )
    record, path = folder / "record.json", folder / "shard-00000.tar"
    folder.mkdir(parents=True, exist_ok=True)
    body = RecordBody(name="none", kind="local", title="", licence="", files=[])
    record.write_text(body.model_dump_json(), encoding="utf-8")
    card = ShardCard(
        spec=digest(spec), shard=0, start=0, stop=images, source=read_record(record).digest, weights=None
    )
    draws = np.random.default_rng(0)
    size = (2 if flip else 1, *shape)
    samples = ((draws.standard_normal(size, np.float32).astype(dtype), k % 10) for k in range(images))
    write_shard(path, card, samples)
    merge_shards(spec, record, None, [path], folder / "manifest.json")
    return LatentShards(folder / "manifest.json")


def random_images(count: int, channels: int, size: int) -> Tensor:
    return torch.rand(count, channels, size, size, device=DEVICE) * 2 - 1


def small_codec() -> ConvCodec:
    network = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=48, latent=4))
    return ConvCodec(network.eval().requires_grad_(False), DEVICE)


def vavae_codec(large: bool) -> KlCodec:
    shape = (
        LdmAutoencoder()
        if large
        else LdmAutoencoder(channels=32, multipliers=[1, 2], attention=[1], blocks=1)
    )
    return KlCodec(build_ldm_autoencoder(shape, 32), "sample", DEVICE)


def random_network(large: bool) -> tuple[nn.Module, LightningDiT]:
    spec = LightningDiT(shape=[4, 4, 4], classes=10, depth=3, width=64, heads=2, patch=2)
    if large:
        spec = LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16)
    return build(spec).to(DEVICE), spec


CASES: dict[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "encode": encode_cases,
    "load": load_cases,
    "sample": sample_cases,
    "score": score_cases,
}
"""What a benchmark measures, given the command line's options and a folder for its files."""
