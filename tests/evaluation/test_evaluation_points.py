"""Points of the plane through every stage, and CIFAR-10's U-Net through a training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from archive_contents import images_of
from tiny_pipeline import TinyPipeline

from fewstep.backbones.model_file import load_model
from fewstep.config import ConfigError
from fewstep.config.settings import Protocol
from fewstep.data.moons import distances
from fewstep.data.shards import LatentShards
from fewstep.evaluation.features import Extractor
from fewstep.evaluation.image_archive import open_images, write_images
from fewstep.evaluation.mmd import mmd_squared

MOONS = {
    "assets": {
        "moons": {"moons": {"points": 300}},
        "moons-held-out": {"moons": {"points": 200}},
    },
    "settings": {
        "datasets": {"moons": {"images": 300}, "moons-held-out": {"images": 200}},
        "protocols": {"moons": {"images": 260}},
        "recipes": {"moons": {"train": {"steps": 30, "global_batch_size": 64, "optimizer": {"warmup": 2}}}},
    },
}
METHODS = ("meanflow-moons", "dumo-moons")


@pytest.fixture(scope="module")
def moons(tmp_path_factory) -> TinyPipeline:
    pipeline = TinyPipeline(tmp_path_factory.mktemp("moons"), MOONS)
    for name in ("moons", "moons-held-out"):
        pipeline.fetch(name)()
        pipeline.encode(name, shard=0)()
        pipeline.encode(name)()
    pipeline.reference(protocol="moons")()
    for method in METHODS:
        pipeline.train(method)()
        pipeline.sample(method, "cm-1", protocol="moons")()
        pipeline.score(method, "cm-1", protocol="moons")()
    return pipeline


@pytest.mark.parametrize("method", METHODS)
def test_the_number_is_that_of_the_points(moons, method):
    tar = open_images(moons.sample(method, "cm-1", protocol="moons").out)
    assert (tar.count, tar.shape, tar.dtype) == (260, (2, 1, 1), np.float32)
    samples = images_of(tar.path).flatten(1)
    real = LatentShards(moons.plan.file("manifest", latents="moons-held-out")).read(range(200)).flatten(1)
    metrics = json.loads(moons.score(method, "cm-1", protocol="moons").out.read_text())
    assert metrics["mmd"] == pytest.approx(mmd_squared(samples, real, 1.0), rel=1e-9)
    away = distances(samples.numpy(), 0.05) / 0.05
    assert metrics["moon_distance"] == pytest.approx(away.mean(), rel=1e-9) and away.mean() > 0.8
    assert metrics["off_moons"] == (away > 3).mean()
    assert 0 < metrics["mmd"] < 0.5 and "fid" not in metrics
    assert metrics["extractor_sha256"] is None and metrics["protocol"]["mmd"] == {"gamma": 1.0}
    assert samples.abs().max() > 1, "nothing was cut off, nor made bytes"


def test_the_unit_of_distance_is_the_noise_of_the_data(moons):
    noise = moons.plan.parts.protocols["moons"].moons.noise
    assert {moons.plan.config.assets[name].moons.noise for name in ("moons", "moons-held-out")} == {noise}


@pytest.mark.parametrize("change", [{"moons": None}, {"metrics": ["mmd"]}])
def test_distances_to_the_moons_go_with_their_noise(moons, change):
    raw = moons.plan.parts.protocols["moons"].model_dump()
    with pytest.raises(ValueError, match="moon_distance and off_moons go with moons"):
        Protocol.model_validate(raw | change)


def test_a_step_takes_the_whole_batch_at_once(moons):
    card = load_model(moons.train("meanflow-moons").out)[1]
    assert card["status"] == "trained" and card["self_test"]["tangent_error"] < 1e-2


def test_points_are_refused_where_images_belong(moons, pipeline, tmp_path):
    """And bytes where points do."""
    protocol = moons.plan.parts.protocols["moons"]
    extractor = Extractor(protocol, None, None)
    with pytest.raises(ValueError, match=r"images are torch.uint8, not torch.float32"):
        extractor(torch.zeros(3, 2, 1, 1, dtype=torch.uint8))
    batch = np.zeros((3, 2, 1, 1), np.float32), np.zeros(3, np.int64)
    write_images(tmp_path / "a.tar", {"uint8": "round"}, [batch])
    with pytest.raises(ValueError, match=r"images are float32 .*, not uint8"):
        open_images(tmp_path / "a.tar")
    digits = pipeline.plan.parts.protocols["digits"]
    with pytest.raises(ConfigError, match="conv-classifier needs a weights file; pass --extractor"):
        Extractor(digits, None, None)


@pytest.mark.parametrize(
    "change", [{"uint8": "round"}, {"extractor": "conv-classifier"}, {"weights": {"method": "m"}}]
)
def test_the_parts_of_a_protocol_without_images_belong_together(moons, change):
    raw = moons.plan.parts.protocols["moons"].model_dump()
    with pytest.raises(
        ValueError, match="identity goes with uint8: none, and it and pixels alone go without weights"
    ):
        Protocol.model_validate(raw | change)


UNET = {
    "shape": [1, 8, 8],
    "width": 8,
    "multipliers": [1, 1],
    "depth": 1,
    "attention": [4],
    "groups": 4,
}
PIXELS = {
    "settings": {
        "latents": {"digits-pixels": {"flip": True}},
        "backbones": {
            "unet-cifar10": UNET,
            "unet-cifar10-dual": UNET,
        },
        "recipes": {
            "cifar10": {
                "latents": "digits-pixels",
                "protocols": ["digits"],
                "train": {"steps": 3, "global_batch_size": 8, "precision": "no"},
            }
        },
    },
    "methods": {
        "meanflow-cifar10": {"train": {"steps": 3, "global_batch_size": 8, "optimizer": {"warmup": 1}}}
    },
}


@pytest.mark.parametrize("method", ["meanflow-cifar10", "dumo-cifar10"])
def test_pixels_through_the_unet(tmp_path, method):
    """Eight by eight digits stand in for CIFAR-10: the same settings, a smaller network."""
    pipeline = TinyPipeline(tmp_path, PIXELS)
    pipeline.fetch("digits")()
    pipeline.encode("digits-pixels", shard=0)()
    pipeline.encode("digits-pixels")()
    pipeline.train(method)()
    card = load_model(pipeline.train(method).out)[1]
    assert card["self_test"]["tangent_error"] < 1e-2 and card["skipped_updates"] == 0
    tar = open_images(pipeline.sample(method, "cm-1")())
    assert tar.shape == (1, 8, 8) and tar.dtype == np.uint8
