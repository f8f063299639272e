"""Made-up images, protocols and references around the tiny pipeline's classifier."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from configs import extractor_file
from tiny_pipeline import Call, TinyPipeline
from torch import Tensor

from fewstep.config import dump
from fewstep.config.settings import Protocol
from fewstep.config.specs import CellKey, ReferenceSpec, SampleSpec, ScoreSpec
from fewstep.evaluation.image_archive import write_images

ALL = ["fid", "is", "kid", "precision", "recall"]
SAMPLE = SampleSpec.model_validate(
    {
        "backbone": {"kind": "mlp", "shape": [1, 8, 8], "classes": 10, "width": 8, "depth": 1},
        "sampler": {"kind": "cm"},
        "guidance": None,
        "steps": 1,
        "images": 0,
        "labels": "random",
        "uint8": "round",
        "seed": 0,
        "latents": {
            "name": "pixels",
            "shape": [1, 8, 8],
            "classes": 10,
            "images": 100,
            "tokenizer": {"kind": "pixels", "shape": [1, 8, 8]},
        },
        "image": [1, 8, 8],
    }
)


def image_card(images: int, **changes: Any) -> dict[str, Any]:
    """The card of made-up images."""
    sample = SAMPLE.model_copy(update={"images": images, **changes})
    model = {"status": "trained", "code": "0", "backbone": {"kind": "mlp"}}
    return {**sample.model_dump(mode="json"), "spec": "0", "evaluations": 1, "model": model}


def digits(count: int, seed: int, size: int = 8) -> Tensor:
    """Random images with some structure, uint8 (count, 1, size, size)."""
    draws = torch.Generator().manual_seed(seed)
    base = torch.rand(10, 1, size, size, generator=draws)
    kind = torch.randint(10, (count,), generator=draws)
    noise = torch.rand(count, 1, size, size, generator=draws)
    return (255 * (0.7 * base[kind] + 0.3 * noise)).to(torch.uint8)


def write(path: Path, images: Tensor, batch: int = 50, said: int | None = None) -> Path:
    """A tar of images; ``said``: how many its card says there are."""
    batches = ((part.numpy(), np.zeros(len(part), np.int64)) for part in images.split(batch))
    write_images(path, image_card(said or len(images)), batches)
    return path


def record(folder: Path, name: str, **content: np.ndarray) -> Path:
    """A fetched asset that holds one npz."""
    file = folder / name / "statistics.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, **content)
    entry = {"name": file.name, "bytes": file.stat().st_size, "source": "made up"}
    entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    path = folder / f"{name}.json"
    body = {"name": name, "kind": "http", "title": name, "licence": "none", "files": [entry]}
    path.write_text(json.dumps(body))
    return path


def protocol(images: int, **changes: Any) -> Protocol:
    entry = {
        "images": images,
        "labels": "random",
        "extractor": "conv-classifier",
        "features": "features",
        "logits": "logits",
        "weights": {"method": "digits-classifier"},
        "metrics": ALL,
        "kid": {"subsets": 5, "size": 50},
        "reference": {"asset": "published", "file": "statistics.npz"},
    }
    return Protocol.model_validate(entry | changes)


def reference_call(pipeline: TinyPipeline, folder: Path, asset: Path, chosen: Protocol) -> Call:
    spec = ReferenceSpec(protocol=chosen, extractor=pipeline.plan.network(chosen.weights), latents=None)
    path, out = folder / "reference-spec.json", folder / "reference.npz"
    path.write_text(dump(spec))
    words = [
        "--spec",
        str(path),
        "--published",
        str(asset),
        "--extractor",
        extractor_file(pipeline.plan),
    ]
    return Call("reference", [*words, "--out", str(out)], [out])


def score_call(
    pipeline: TinyPipeline, folder: Path, images: Path, reference: Path, chosen: Protocol, **changes
) -> Call:
    cell = CellKey(method="decm", variant="base", seed=0, sampler="cm", steps=1, protocol="made-up")
    sample = SAMPLE.model_copy(update={"images": chosen.images, **changes})
    spec = ScoreSpec(
        cell=cell, protocol=chosen, extractor=pipeline.plan.network(chosen.weights), sample=sample
    )
    path, out = folder / "score-spec.json", folder / "score.json"
    path.write_text(dump(spec))
    words = [
        "--spec",
        str(path),
        "--images",
        str(images),
        "--extractor",
        extractor_file(pipeline.plan),
    ]
    return Call("score", [*words, "--reference", str(reference), "--out", str(out)], [out])
