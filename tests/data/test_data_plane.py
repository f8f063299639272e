"""Data that are not ImageNet's: two moons from the draw to shards, and CIFAR-10 as the hub stores it."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from configs import raw_config
from PIL import Image
from pyarrow import parquet

from fewstep.config import ConfigError
from fewstep.config.assets import Asset, Moons
from fewstep.config.settings import Dataset, Latents, Tokenizer
from fewstep.config.specs import EncodeSpec
from fewstep.data.asset_files import Record, read_record
from fewstep.data.fetching import fetch_asset
from fewstep.data.moons import MEAN, deviation, distances
from fewstep.data.shards import LatentShards
from fewstep.data.sources import open_source
from fewstep.data.tokenizers import open_tokenizer
from fewstep.encode import main as encode
from fewstep.evaluation.quantization import quantize
from fewstep.plan import Plan

POINTS = 4000


def moons_asset(seed: int = 0) -> Asset:
    draw = Moons(points=POINTS, noise=0.05, seed=seed)
    return Asset(kind="sklearn", licence="BSD-3-Clause", moons=draw)


def moons_dataset(**change) -> Dataset:
    values = {"asset": "moons", "format": "moons", "resolution": 1, "channels": 2, "classes": 1}
    return Dataset.model_validate({**values, "images": POINTS, **change})


@pytest.fixture
def moons(tmp_path: Path) -> Record:
    fetch_asset("moons", moons_asset(), tmp_path / "moons.json")
    return read_record(tmp_path / "moons.json")


def test_moons_have_mean_0_and_variance_1(moons: Record) -> None:
    """Of the law, not of the draw, which deviates by a few hundredths."""
    points, labels = open_source(moons_dataset(), moons).read(0, POINTS)
    assert points.shape == (POINTS, 2, 1, 1) and points.dtype == torch.float32 and not labels.any()
    torch.testing.assert_close(points.mean((0, 2, 3)), torch.zeros(2), atol=0.04, rtol=0)
    torch.testing.assert_close(points.var((0, 2, 3)), torch.ones(2), atol=0.04, rtol=0)


def test_moons_lie_on_two_half_circles(moons: Record) -> None:
    points, _ = open_source(moons_dataset(), moons).read(0, POINTS)
    away = distances(points.flatten(1).numpy(), 0.05)
    # Across a curve that is straight at the scale of the noise, the distance is |N(0, 0.05^2)|.
    assert away.mean() == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.03)
    assert (away > 0.05).mean() == pytest.approx(math.erfc(1 / math.sqrt(2)), abs=0.03)
    assert (away > 0.15).mean() < 0.006


PLACES = {
    "on the upper moon": ((0.6, 0.8), 0.0),
    "on the lower moon": ((1.0, -0.5), 0.0),
    "inside the upper moon": ((-0.54, 0.72), 0.1),
    "outside the upper moon": ((-3.0, 4.0), 4.0),
    "below the upper moon's left end": ((-1.3, -0.4), 0.5),
    "above the lower moon's right end": ((2.0, 0.75), 0.25),
    "upper moon's centre, nearer to the lower moon": ((0.0, 0.0), math.sqrt(5) / 2 - 1),
    "halfway between the moons": ((0.5, 0.25), 1 - math.sqrt(5) / 4),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_distance_to_the_moons_is_that_of_geometry(place: str) -> None:
    point, expected = PLACES[place]
    standard = (np.array([point]) - [0.5, 0.25]) / np.sqrt([0.75 + 0.01, 9 / 16 - 1 / math.pi + 0.01])
    assert distances(standard, 0.1) == pytest.approx(expected, abs=1e-12)


def test_the_distance_is_the_least_over_all_points_of_the_moons() -> None:
    angle = np.linspace(0, math.pi, 4001)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    curve = np.concatenate([upper, [1, 0.5] - upper])
    standard = np.random.default_rng(0).normal(size=(200, 2))
    plane = standard * deviation(0.05) + MEAN
    least = np.linalg.norm(plane[:, None] - curve, axis=-1).min(1)
    np.testing.assert_allclose(distances(standard, 0.05), least, atol=1e-3)


def test_a_draw_can_be_repeated_and_another_shares_its_coordinates(moons: Record, tmp_path: Path) -> None:
    fetch_asset("again", moons_asset(), tmp_path / "again.json")
    fetch_asset("other", moons_asset(seed=1), tmp_path / "other.json")
    again, other = read_record(tmp_path / "again.json"), read_record(tmp_path / "other.json")
    assert again.digest == moons.digest != other.digest
    ours, others = (open_source(moons_dataset(), record).read(0, 5)[0] for record in (moons, other))
    assert not torch.equal(ours, others)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"images": 3999}, "images"), ({"classes": 2}, "classes"), ({"channels": 3}, "channels")],
)
def test_other_moons_than_configured_are_refused(moons: Record, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(moons_dataset(**change), moons)


def test_moons_become_shards(moons: Record, tmp_path: Path) -> None:
    tokenizer = Tokenizer(kind="points", shape=[2, 1, 1])
    spec = EncodeSpec(
        name="moons",
        dataset=moons_dataset(),
        tokenizer=tokenizer,
        latents=Latents(dataset="moons", tokenizer="points", shards=1),
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    shard, manifest = tmp_path / "shard-00000.tar", tmp_path / "manifest.json"
    common = ["--spec", str(tmp_path / "spec.json"), "--source", str(moons.path), "--tokenizer"]
    encode([*common, "--shard", "0", "--out", str(shard)])
    encode([*common, "--merge", str(shard), "--out", str(manifest)])
    shards = LatentShards(manifest)
    expected, _ = open_source(moons_dataset(), moons).read(0, POINTS)
    assert torch.equal(shards.read(range(POINTS))[:, 0], expected)
    assert expected.abs().max() > 1, "and decoding must not cut them off"
    assert torch.equal(open_tokenizer(tokenizer, None, None).decode(expected), expected)
    assert torch.equal(quantize(expected, "none"), expected)


def png(level: int) -> bytes:
    """A 32 x 32 image of one colour with a brighter left half."""
    pixels = np.full((32, 32, 3), level, np.uint8)
    pixels[:, :16] += 50
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def cifar(tmp_path: Path) -> Record:
    """Seven images in the files, folders and columns of uoft-cs/cifar10."""
    folder = tmp_path / "cifar10/plain_text"
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": png(20 * k), "path": None} for k in range(7)], kind)
    table = pa.table({"img": images, "label": pa.array([k % 10 for k in range(7)], pa.int64())})
    parquet.write_table(table, folder / "train-00000-of-00001.parquet", row_group_size=3)
    record = tmp_path / "assets/cifar10.json"
    fetch_asset("cifar10", Asset(kind="local", licence="own", path=str(folder.parent)), record)
    return read_record(record)


def cifar_dataset(**change) -> Dataset:
    configured = Plan(raw_config()).parts.datasets["cifar10"].model_dump()
    return Dataset.model_validate({**configured, "images": 7, **change})


def test_cifar_images_are_read_as_configured(cifar: Record) -> None:
    images, labels = open_source(cifar_dataset(), cifar).read(0, 7)
    assert images.shape == (7, 3, 32, 32) and labels.tolist() == list(range(7))
    levels = 20.0 * torch.arange(7)
    torch.testing.assert_close((images[:, 0, 0, 31] + 1) * 127.5, levels)
    torch.testing.assert_close((images[:, 2, 9, 0] + 1) * 127.5, levels + 50)
    assert torch.equal(quantize(images, "round")[:, 1, 1, 31], levels.to(torch.uint8))


def test_columns_of_other_names_are_named(cifar: Record) -> None:
    with pytest.raises(ConfigError, match=r"needs columns image .*has \['img', 'label'\].*dataset\.columns"):
        open_source(cifar_dataset(columns=["image", "label"]), cifar)
