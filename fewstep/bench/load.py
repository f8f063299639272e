"""Training batches: whole, and the parts that they are made of. Always on the CPU."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config.settings import Dataset, Latents, Tokenizer
from ..config.specs import EncodeSpec, digest
from ..core.rng import generator
from ..data.loader import Loader
from ..data.merge import merge
from ..data.shards import LatentShards, ShardCard, write_shard
from .cases import Call, Case


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


def cases(given: argparse.Namespace, folder: Path) -> list[Case]:
    """Training batches: whole, and the parts that they are made of. Always on the CPU."""
    found = []
    for name, shape, dtype, images, flip in (
        ("digits 4x4x4 float32", [4, 4, 4], "float32", 1797, False),
        ("VA-VAE 32x16x16 float16", [32, 16, 16], "float16", 2048, True),
    ):
        shards = made_up_shards(folder / name.split()[0], shape, dtype, images, flip)
        found += _load_cases(name, shards, given.batch)
    return found


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
