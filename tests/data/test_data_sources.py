"""Images from folders and tars."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from data_factories import png, record_of, tar_of
from PIL import Image

from fewstep.config import ConfigError
from fewstep.config.settings import Dataset
from fewstep.data.asset_files import Record
from fewstep.data.image_files import adm_crop
from fewstep.data.sources import open_source


def dataset(**change: object) -> Dataset:
    base = {"asset": "mine", "format": "imagefolder", "resolution": 8, "classes": 2, "images": 3}
    return Dataset.model_validate({**base, **change})


@pytest.fixture
def folders(tmp_path: Path) -> Record:
    files = {
        "n02/a.PNG": png((255, 0, 0)),
        "n10/a.png": png((0, 0, 255)),
        "n10/b.png": png((0, 255, 0)),
        "readme.txt": b"",
    }
    return record_of(tmp_path, files)


def test_imagefolder_order_range_and_labels(folders: Record) -> None:
    source = open_source(dataset(), folders)
    images, labels = source.read(0, 3)
    assert len(source) == 3 and labels.tolist() == [0, 1, 1]
    assert images.shape == (3, 3, 8, 8) and images.dtype == torch.float32
    assert images[:, :, 0, 0].tolist() == [[1, -1, -1], [-1, -1, 1], [-1, 1, -1]]
    assert torch.equal(source.read(1, 2)[0], images[1:2])


def test_images_without_folders_are_one_class(tmp_path: Path) -> None:
    record = record_of(tmp_path, {"b.png": png((255, 0, 0)), "a.png": png((0, 0, 255)), "a.csv": b""})
    images, labels = open_source(dataset(classes=1, images=2), record).read(0, 2)
    assert labels.tolist() == [0, 0]
    assert images[:, :, 0, 0].tolist() == [[-1, -1, 1], [1, -1, -1]]


@pytest.mark.parametrize(
    ("names", "classes"), [(["train/x/a", "train/y/a", "test/x/b"], 2), (["train/a", "train/b", "test/c"], 1)]
)
def test_a_prefix_leaves_other_splits_out(tmp_path: Path, names: list[str], classes: int) -> None:
    record = record_of(tmp_path, {f"{name}.png": png((number, 0, 0)) for number, name in enumerate(names)})
    source = open_source(dataset(prefix="train/", images=2, classes=classes), record)
    assert source.read(0, 2)[1].tolist() == [0, classes - 1]


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_damaged_images_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    whole = encoded(Image.fromarray(noise))
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    for content, message in (
        (b"<html>", "not an image"),
        (whole[: len(whole) // 2], "image file is truncated"),
        (whole[:second] + b"\1\2\3\4" + whole[second + 4 :], "broken PNG file"),
    ):
        record = record_of(tmp_path, {"a/x.png": content})
        with pytest.raises(ConfigError, match=rf"x\.png: {message}"):
            open_source(dataset(classes=1, images=1, resolution=300), record).read(0, 1)


def test_images_that_would_become_others_are_refused(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8)
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    clear.putpixel((3, 4), (255, 0, 0, 254))
    for content, message in (
        (encoded(Image.fromarray(grey * 1000)), "has more than 8 bits a channel"),
        (encoded(Image.fromarray(grey.astype(np.float32)), "tiff"), "not an image"),
        (encoded(clear), "has transparent pixels"),
        (png((0, 0, 0), (1, 101)), "is 1x101: one side is over 100 times the other"),
    ):
        record = record_of(tmp_path, {"a/x.png": content})
        with pytest.raises(ConfigError, match=rf"x\.png: {message}"):
            open_source(dataset(classes=1, images=1, crop="adm"), record).read(0, 1)
    opaque = encoded(Image.new("RGBA", (8, 8), (255, 0, 127, 255)))
    images, _ = open_source(dataset(classes=1, images=1), record_of(tmp_path, {"a/x.png": opaque})).read(0, 1)
    assert images[0, :, 0, 0].tolist() == pytest.approx([1, -1, 127 / 127.5 - 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 4}, "dataset.images: found 3, the configuration says 4"),
        ({"classes": 3}, "dataset.classes: found 2, the configuration says 3"),
        ({"format": "parquet"}, "parquet, but there is no .parquet file"),
        ({"format": "webdataset"}, "webdataset, but there is no .tar file"),
        ({"format": "digits"}, r"has no file 'digits\.npz'"),
        ({"channels": 2}, "dataset.channels: must be 1 or 3"),
    ],
)
def test_other_data_than_configured_are_refused(folders: Record, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(dataset(**change), folders)
    assert "mine.json" in str(caught.value)


def test_unfit_images_are_named(folders: Record, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.PNG: is 8x8, not 4x4, and crop is none"):
        open_source(dataset(resolution=4), folders).read(0, 1)
    record = record_of(tmp_path / "bad", {"a/x.png": b"text", "b/y.png": b"text", "b/z.png": b"text"})
    with pytest.raises(ConfigError, match=r"x\.png: not an image"):
        open_source(dataset(), record).read(0, 1)


def test_adm_crop_size_centre_and_filters() -> None:
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (16, 1))
    image = Image.fromarray(ramp)
    cropped = np.asarray(adm_crop(image, 16))
    assert np.array_equal(cropped, ramp[:, 12:28])  # short side fits: nothing but the crop
    halved = np.asarray(adm_crop(image, 8))
    pairs = ramp.astype(float).reshape(8, 2, 20, 2).mean((1, 3))
    assert halved.shape == (8, 8) and np.abs(halved - pairs[:, 6:14]).max() <= 1  # one box halving
    for size in ((50, 37), (37, 50), (9, 100), (8, 8)):
        assert adm_crop(Image.new("RGB", size), 8).size == (8, 8)


def test_adm_crop_in_a_source(tmp_path: Path) -> None:
    files = {f"c{k % 2}/{k}.png": png((k, k, k), (20 + k, 11)) for k in range(3)}
    images, labels = open_source(dataset(crop="adm"), record_of(tmp_path, files)).read(0, 3)
    assert images.shape == (3, 3, 8, 8) and labels.tolist() == [0, 0, 1]
    torch.testing.assert_close(images[:, 0, 4, 4], torch.tensor([0.0, 2.0, 1.0]) / 127.5 - 1)


def test_webdataset_tars(tmp_path: Path) -> None:
    first = tar_of(
        {"x/1.png": png((255, 0, 0)), "x/1.cls": b"1", "x/2.cls": b"0", "x/2.png": png((0, 255, 0))}
    )
    second = tar_of({"3.png": png((0, 0, 255)), "3.cls": b"1\n", "3.json": b"{}"})
    record = record_of(tmp_path, {"b.tar": second, "a.tar": first})
    source = open_source(dataset(format="webdataset"), record)
    images, labels = source.read(0, 3)
    assert labels.tolist() == [1, 0, 1]
    assert images[:, :, 0, 0].tolist() == [[1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    assert torch.equal(source.read(2, 3)[0], images[2:])


def test_webdataset_labels_count_the_sorted_classes_that_the_names_tell(tmp_path: Path) -> None:
    """As timm/imagenet-1k-wds names its samples."""
    thousand = dataset(format="webdataset", class_ids="imagenet-1k", images=2)
    names = {"n01440764_10": b"0", "n01443537_5": b"1"}
    right = {f"{k}.{kind}": v for k, c in names.items() for kind, v in (("jpg", png((9, 9, 9))), ("cls", c))}
    source = open_source(thousand, record_of(tmp_path / "right", {"a.tar": tar_of(right)}))
    assert source.read(0, 2)[1].tolist() == [0, 1]
    wrong = right | {"n01443537_5.cls": b"0"}
    with pytest.raises(ConfigError, match=r"a\.tar: n01443537_5\.cls: label 0 on an image of n01443537"):
        open_source(thousand, record_of(tmp_path / "wrong", {"a.tar": tar_of(wrong)}))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b"x", "1.cls": b"7"}, r"1\.cls: b'7' is no label below 2"),
        ({"1.png": b"x", "2.cls": b"1"}, "sample '1' has not both"),
    ],
)
def test_damaged_tars_are_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    record = record_of(tmp_path, {"a.tar": tar_of(members)})
    with pytest.raises(ConfigError, match=message):
        open_source(dataset(format="webdataset"), record)
