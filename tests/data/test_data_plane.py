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
    deviation = np.sqrt(np.array([0.75, 9 / 16 - 1 / math.pi]) + 0.05**2)
    x, y = (points.flatten(1).numpy() * deviation + [0.5, 0.25]).T
    radius = np.minimum(abs(np.hypot(x, y) - 1), abs(np.hypot(x - 1, y - 0.5) - 1))
    assert radius.mean() < 0.05 and radius.max() < 0.25


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
