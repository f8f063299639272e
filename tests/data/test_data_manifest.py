"""One field of a manifest changed on disk, and neither training nor sampling goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_pipeline import TinyPipeline, refused, replaced


@pytest.fixture
def latents(pipeline: TinyPipeline, tmp_path: Path) -> Path:
    """A copy of the digits' latents: the path of its manifest."""
    source = Path(pipeline.plan.file("manifest", latents="digits-latents"))
    return Path(shutil.copytree(source.parent, tmp_path / "latents")) / source.name


def change(manifest: Path, key: str, value: object) -> None:
    """Set a field, named by its keys and positions joined by points."""
    content = json.loads(manifest.read_text())
    *path, last = [int(part) if part.isdecimal() else part for part in key.split(".")]
    inner = content
    for part in path:
        inner = inner[part]
    assert inner[last] != value
    inner[last] = value
    content.pop("digest", None)  # a change that means to be one
    manifest.write_text(json.dumps(content))


TRAINING = [
    ("name", "others", "name"),
    ("images", 1796, "images"),
    ("shape", [4, 4, 5], "shape"),
    ("views", 2, "views"),
    ("dtype", "float16", "dtype"),
    ("spec", "0" * 16, "spec"),
    ("tokenizer.multiplier", 0.5, "normalisation"),
    ("tokenizer.posterior", "sample", "tokenizer.posterior"),
    ("normalisation.multiplier", 2.0, "normalisation"),
    ("normalisation.mean.0", 0.25, "normalisation"),
    ("mean.0", 0.25, "normalisation"),
    ("std.3", 9.0, "normalisation"),
    ("dataset.classes", 11, "histogram"),
    ("histogram.0", 1, "histogram"),
    ("shards.0.sha256", "0" * 64, "sha256"),
    ("shards.0.bytes", 5, "bytes"),
    ("index.sha256", "0" * 64, "sha256"),
]


@pytest.mark.parametrize(("key", "value", "named"), TRAINING, ids=[key for key, *_ in TRAINING])
def test_training_refuses(pipeline, latents, tmp_path, key, value, named):
    change(latents, key, value)
    call = replaced(pipeline.train("cd", tmp_path / "out"), "--latents", str(latents))
    refused(call, "manifest.json", named)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("normalisation.std.0", 0.25, "normalisation"),
        ("tokenizer.multiplier", 0.5, "normalisation"),
        ("weights", "0" * 64, "other tokenizer weights"),
    ],
)
def test_sampling_refuses(pipeline, latents, tmp_path, key, value, named):
    change(latents, key, value)
    call = replaced(pipeline.sample("cd", "cm-2", tmp_path / "out"), "--latents", str(latents))
    refused(call, "manifest.json", named)
