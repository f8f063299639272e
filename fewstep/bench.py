"""Measure what this machine does in a second, for config/costs.yaml.

    python -m fewstep.bench encode|load|sample|score|train-step [--repeats N] [--out x.csv]

All cases of a run take turns, so that a change in the machine's load meets them alike; the least and the
median of the repeats are told. Networks are random: speed does not depend on weights. The sizes are the
demo's and, with ``--large``, those of ImageNet (VA-VAE f16d32, LightningDiT-XL/1), which want a GPU.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .backbones import build
from .checkpoint import save_model
from .config.settings import (
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
from .config.specs import EncodeSpec, digest
from .core.guidance import guided_field
from .core.jvp import FORMULATIONS, value_and_tangent
from .core.rng import generator
from .core.sampling import sample
from .data import vavae
from .data.loader import Loader
from .data.merge import merge
from .data.shards import LatentShards, ShardCard, write_shard
from .data.tokenizers import Autoencoder, Coder, KlAutoencoder, Pixels
from .files import write_text
from .images import to_uint8

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Call = Callable[[], None]


class Clock:
    """Seconds spent inside a part of a case."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = now()
        yield
        self.seconds += now() - start


@dataclass
class Case:
    """One thing to measure: ``call`` does ``amount`` of it, spending the time of ``inside`` in ``part``."""

    name: str
    call: Call
    amount: int
    unit: str
    inside: Clock | None = None
    part: str = ""
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def turn(self) -> None:
        before = self.inside.seconds if self.inside else 0.0
        start = now()
        self.call()
        self.seconds.append(now() - start)
        if self.inside:
            self.shares.append((self.inside.seconds - before) / self.seconds[-1])


def now() -> float:
    """Seconds, after the device has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark, print its table and perhaps write it."""
    arguments = argparse.ArgumentParser(description="Measure what this machine does in a second.")
    arguments.add_argument("what", choices=BENCHMARKS)
    arguments.add_argument("--repeats", type=int, default=5, help="turns of every case (%(default)s)")
    arguments.add_argument("--batch", type=int, default=64, help="images at once (%(default)s)")
    arguments.add_argument("--large", action="store_true", help="the sizes of ImageNet instead of the demo's")
    arguments.add_argument("--out", type=Path, help="CSV to write")
    given = arguments.parse_args(argv)
    if given.repeats < 1 or given.batch < 2:
        arguments.error("--repeats must be 1 or more, --batch 2 or more")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases = BENCHMARKS[given.what](given, Path(folder))
        for case in cases:  # buffers, kernels and file caches
            case.call()
        for _ in range(given.repeats):
            for case in cases:
                case.turn()
    lines = [line(given.what, case, cases[0]) for case in cases]
    widths = {key: max(len(key), *(len(row[key]) for row in lines)) for key in lines[0]}
    for row in [{key: key for key in widths}, *lines]:
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip())
    if given.out:
        with tempfile.TemporaryFile("w+", newline="") as stream:
            writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
            stream.seek(0)
            write_text(given.out, stream.read())


def line(what: str, case: Case, first: Case) -> dict[str, str]:
    """A row of the table: rates from the least and the median time; ``relative`` time to the first case."""
    return {
        "benchmark": what,
        "case": case.name,
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "threads": str(torch.get_num_threads()),
        "unit": f"{case.unit}/s",
        "best": f"{case.amount / min(case.seconds):.4g}",
        "median": f"{case.amount / median(case.seconds):.4g}",
        "ms": f"{1e3 * min(case.seconds):.4g}",
        "relative": f"{min(case.seconds) / min(first.seconds):.3f}",
        "share": f"{median(case.shares):.2f} {case.part}" if case.shares else "",
    }


def _images(count: int, channels: int, size: int) -> Tensor:
    return torch.rand(count, channels, size, size, device=DEVICE) * 2 - 1


def _autoencoder() -> Autoencoder:
    network = build(ConvAutoencoder(kind="conv-autoencoder", shape=[1, 8, 8], width=48, latent=4))
    return Autoencoder(network.eval().requires_grad_(False), DEVICE)


def _vavae(large: bool) -> KlAutoencoder:
    shape = (
        LdmAutoencoder()
        if large
        else LdmAutoencoder(channels=32, multipliers=[1, 2], attention=[1], blocks=1)
    )
    return KlAutoencoder(vavae.build(shape, 32), "sample", DEVICE)


def encode(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Tokenizers: images to latents."""
    coders: dict[str, tuple[Coder, Tensor]] = {"vavae": (_vavae(True), _images(given.batch, 3, 256))}
    if not given.large:
        digits = _images(given.batch, 1, 8)
        coders = {
            "pixels 1x8x8": (Pixels(), digits),
            "autoencoder 1x8x8": (_autoencoder(), digits),
            "vavae, small, 3x32x32": (_vavae(False), _images(given.batch, 3, 32)),
        }

    def case(name: str, coder: Coder, images: Tensor) -> Case:
        @torch.no_grad()
        def call() -> None:
            coder.encode(images, range(len(images)))

        return Case(name, call, len(images), "images")

    return [case(name, *each) for name, each in coders.items()]


def made_up_shards(folder: Path, shape: list[int], dtype: str, images: int, flip: bool) -> LatentShards:
    """Shards of noise, as the encode stage would write them."""
    spec = EncodeSpec(
        name="bench",
        dataset=Dataset(asset="none", format="imagefolder", resolution=8, classes=10, images=images),
        tokenizer=Tokenizer(kind="pixels", shape=shape, statistics="computed"),
        latents=Latents(dataset="bench", tokenizer="bench", shards=1, flip=flip, dtype=dtype),
    )
    path = folder / "shard-00000.tar"
    card = ShardCard(spec=digest(spec), shard=0, start=0, stop=images, source="none", weights=None)
    draws = np.random.default_rng(0)
    size = (2 if flip else 1, *shape)
    samples = ((draws.standard_normal(size, np.float32).astype(dtype), k % 10) for k in range(images))
    write_shard(path, card, samples)
    merge(spec, "none", None, [path], folder / "manifest.json", None)
    return LatentShards(folder / "manifest.json")


def load(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Training batches: whole, and the parts that they are made of. Always on the CPU."""
    cases = []
    for name, shape, dtype, images, flip in (
        ("digits 4x4x4 float32", [4, 4, 4], "float32", 1797, False),
        ("VA-VAE 32x16x16 float16", [32, 16, 16], "float16", 2048, True),
    ):
        shards = made_up_shards(folder / name.split()[0], shape, dtype, images, flip)
        cases += _load_cases(name, shards, given.batch)
    return cases


def _load_cases(name: str, shards: LatentShards, batch: int) -> list[Case]:
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

    def draw(_: int) -> None:
        for row in noise:
            row.normal_(generator=generator(0, "noise", next(position)))

    parts: dict[str, Callable[[int], Any]] = {
        "batches": lambda _: loader.rows(next(position), slice(0, batch)),
        "read": lambda k: shards.read(indices[k], torch.zeros(batch, dtype=torch.int64)),
        "normalise": lambda _: shards.normalise(raw),
        "noise": draw,
    }
    return [Case(f"{name}: {part}", repeated(call), steps * batch, "latents") for part, call in parts.items()]


def _network(large: bool) -> tuple[nn.Module, LightningDiT]:
    spec = LightningDiT(shape=[4, 4, 4], classes=10, depth=3, width=64, heads=2, patch=2)
    if large:
        spec = LightningDiT(shape=[32, 16, 16], classes=1000, depth=28, width=1152, heads=16)
    return build(spec).to(DEVICE), spec


def sampling(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Noise to bytes, and the share of the network's own passes."""
    net, spec = _network(given.large)
    net.eval().requires_grad_(False)
    coder = _vavae(True) if given.large else _autoencoder()
    labels = torch.arange(given.batch, device=DEVICE) % spec.classes

    def case(nfe: int) -> Case:
        clock = Clock()

        def timed(*inputs: Tensor) -> Tensor:
            with clock():
                return net(*inputs)

        @torch.no_grad()
        def call() -> None:
            draws = [torch.randn(spec.shape, generator=generator(0, "start", k)) for k in range(given.batch)]
            field = guided_field(timed, None, spec.classes, labels)
            sampler = Sampler(kind="euler")
            x = sample(sampler, field, torch.stack(draws).to(DEVICE), nfe, lambda _: torch.stack(draws))
            to_uint8(coder.decode(x), "round").cpu()

        return Case(f"euler, {nfe} steps", call, given.batch, "images", clock, "in the network")

    return [case(1), case(8)]


def scoring(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Bytes to features and their statistics, and the share of the extractor."""
    from .features import Extractor, Features

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
    images = to_uint8(_images(given.batch, 1, 8).cpu(), "round")
    values = {"features": torch.randn(given.batch, 2048)}
    wide = protocol.model_copy(update={"metrics": ["fid"]})
    clock = Clock()

    def narrow_call() -> None:
        features = Features(protocol, DEVICE)
        with clock():
            found = extractor(images)
        features.add(found)

    statistics = Features(wide, DEVICE)
    return [
        Case("conv-classifier 1x8x8", narrow_call, given.batch, "images", clock, "in the extractor"),
        Case("statistics of 2048 features", lambda: statistics.add(values), given.batch, "images"),
    ]


def train_step(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Value, tangent and backward of the consistency term, for every formulation; the first is functorch."""
    net, spec = _network(given.large)
    for weight in net.parameters():  # zero-initialised layers would let kernels off
        nn.init.normal_(weight, std=0.02)
    x, dx = torch.randn(2, given.batch, *spec.shape, device=DEVICE)
    t = torch.rand(given.batch, device=DEVICE)
    s, ones, y = (
        torch.ones_like(t),
        torch.ones_like(t),
        torch.arange(given.batch, device=DEVICE) % spec.classes,
    )

    def case(name: str) -> Case:
        def call() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                value, tangent = value_and_tangent(net, (x, t, s), (dx, ones, 0 * ones), y, name)
                (value - tangent.detach()).square().mean().backward()
            net.zero_grad(set_to_none=True)

        shape = "x".join(map(str, spec.shape))
        return Case(f"{name}, {shape}, width {spec.width}", call, given.batch, "images")

    return [case(name) for name in ("functorch", *(name for name in FORMULATIONS if name != "functorch"))]


BENCHMARKS: dict[str, Callable[[argparse.Namespace, Path], list[Case]]] = {
    "encode": encode,
    "load": load,
    "sample": sampling,
    "score": scoring,
    "train-step": train_step,
}


if __name__ == "__main__":
    main()
