"""ImageNet in the forms it comes in: Parquet from the hub, the original tar of tars, folders."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from data_factories import tar_of
from PIL import Image
from pyarrow import parquet

from fewstep.config import ConfigError
from fewstep.config.assets import Asset
from fewstep.config.settings import Dataset
from fewstep.data import archives
from fewstep.data.asset_files import Record, read_record
from fewstep.data.fetching import fetch_asset
from fewstep.data.image_files import check_folders, class_ids
from fewstep.data.sources import open_source

IDS = ["n01440764", "n01443537", "n01484850"]


def jpeg(level: int, mode: str = "RGB", exif: bool = False, size: tuple[int, int] = (12, 8)) -> bytes:
    """A grey image that grows brighter to the right; ``exif`` asks viewers to turn it by 180 degrees."""
    ramp = np.broadcast_to(np.linspace(0, 60, size[0]) + level, (size[1], size[0])).astype(np.uint8)
    stream, options = io.BytesIO(), {}
    if exif:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 3
    Image.fromarray(ramp).convert(mode).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def dataset(**change: object) -> Dataset:
    base = {"asset": "in", "format": "parquet", "resolution": 8, "classes": 3, "images": 10, "crop": "adm"}
    return Dataset.model_validate({**base, **change})


def record_of(folder: Path) -> Record:
    record = folder.parent / "assets" / f"{folder.name}.json"
    fetch_asset("in", Asset(kind="local", licence="own", path=str(folder)), record)
    return read_record(record)


def write_parquet(path: Path, rows: list[tuple[bytes | None, str | None, int]], group: int = 3) -> None:
    """As the hub writes image data sets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": name} for content, name, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([label for *_, label in rows], pa.int64())
    table = pa.table({"image": pa.array(images, kind), "label": labels, "more": labels})
    parquet.write_table(table, path, row_group_size=group)


def rows(count: int, first: int = 0) -> list[tuple[bytes, str, int]]:
    numbers = range(first, first + count)
    return [(jpeg(10 * k), f"{IDS[k % 3]}_{k}_{IDS[k % 3]}.JPEG", k % 3) for k in numbers]


@pytest.fixture
def hub(tmp_path: Path) -> Record:
    write_parquet(tmp_path / "hub/data/train-00000-of-00002.parquet", rows(7))
    write_parquet(tmp_path / "hub/data/train-00001-of-00002.parquet", rows(3, first=7))
    return record_of(tmp_path / "hub")


def test_parquet_rows_in_order_and_by_range(hub: Record) -> None:
    source = open_source(dataset(), hub)
    images, labels = source.read(0, 10)
    assert len(source) == 10 and labels.tolist() == [k % 3 for k in range(10)]
    assert images.shape == (10, 3, 8, 8) and images.dtype == torch.float32
    levels = (images[:, :, :, 3:5].mean((1, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(levels, 10.0 * torch.arange(10) + 30, atol=2, rtol=0)
    fresh = open_source(dataset(), hub)
    for start, stop in ((6, 8), (0, 1), (9, 10), (2, 7)):
        part, part_labels = fresh.read(start, stop)
        assert torch.equal(part, images[start:stop]) and torch.equal(part_labels, labels[start:stop])


def test_only_the_row_groups_of_the_range_are_read(hub: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Spy(parquet.ParquetFile):
        def read_row_group(self, i: int, **options: object) -> pa.Table:
            asked.append((i, options["columns"]))
            return super().read_row_group(i, **options)

    monkeypatch.setattr(parquet, "ParquetFile", Spy)
    source = open_source(dataset(), hub)
    assert asked == []
    source.read(3, 5)
    source.read(5, 7)
    source.read(7, 8)
    assert [group for group, _ in asked] == [1, 2, 0]
    assert asked[0][1] == ["image", "label"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((jpeg(0), "a.JPEG", 3), "label 3 is not one of 3 classes"),
        ((jpeg(0), "a.JPEG", -1), "label -1 is not one of 3 classes"),
        ((jpeg(0), "n01443537_5.JPEG", 0), "label 0 on an image of n01443537, but labels must count"),
        ((jpeg(0), "train/n99999999/5.JPEG", 0), "label 0 on an image of n99999999"),
        ((None, "a.JPEG", 0), "has no image bytes"),
        ((b"text", "a.JPEG", 0), "not an image"),
        ((jpeg(0)[:-40], "a.JPEG", 0), "(?i)truncated"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, row: tuple, message: str) -> None:
    write_parquet(tmp_path / "bad/a.parquet", [*rows(4), row])
    source = open_source(dataset(images=5, class_ids="imagenet-1k"), record_of(tmp_path / "bad"))
    assert source.read(0, 4)[1].tolist() == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match=message) as caught:
        source.read(3, 5)
    assert f"a.parquet: row 1 of group 1 ({row[1]})" in str(caught.value)


def test_other_files_and_counts_are_refused(hub: Record, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.images: found 10, the configuration says 1281167"):
        open_source(dataset(images=1_281_167), hub)
    parquet_file = tmp_path / "other/a.parquet"
    parquet_file.parent.mkdir()
    parquet.write_table(pa.table({"text": ["a"]}), parquet_file)
    with pytest.raises(ConfigError, match=r"a\.parquet: needs columns image \(bytes, path\) and label, has"):
        open_source(dataset(), record_of(tmp_path / "other"))
    parquet_file.write_bytes(b"PAR1 not really")
    with pytest.raises(ConfigError, match=r"a\.parquet: not a Parquet file"):
        open_source(dataset(), record_of(tmp_path / "other"))


def test_colours_and_orientation_as_everyone_reads_them(tmp_path: Path) -> None:
    """Grey and CMYK become RGB; the camera's wish to be turned is not granted."""
    kinds = [jpeg(50), jpeg(50, exif=True), jpeg(50, "L"), jpeg(50, "CMYK")]
    write_parquet(tmp_path / "kinds/a.parquet", [(kind, None, k % 3) for k, kind in enumerate(kinds)])
    images, _ = open_source(dataset(images=4), record_of(tmp_path / "kinds")).read(0, 4)
    assert images[0, 0, 0, 7] > images[0, 0, 0, 0] + 0.2
    for k in (1, 2, 3):
        torch.testing.assert_close(images[k], images[0], atol=4 / 127.5, rtol=0)


CLASSES = {
    IDS[1]: {f"{IDS[1]}_2.JPEG": jpeg(20), f"{IDS[1]}_1.JPEG": jpeg(10)},
    IDS[0]: {f"{IDS[0]}_9.JPEG": jpeg(90)},
    IDS[2]: {f"{IDS[2]}_5.JPEG": jpeg(50), f"{IDS[2]}_4.JPEG": jpeg(40)},
}


def test_tar_of_tars_tars_of_classes_and_folders_are_the_same(tmp_path: Path) -> None:
    tars = {f"{name}.tar": tar_of(files) for name, files in CLASSES.items()}
    files = {"nested/ILSVRC2012_img_train.tar": tar_of(tars)}
    files |= {f"classes/{name}": content for name, content in tars.items()}
    files |= {f"folders/train/{name}/{k}": v for name, inside in CLASSES.items() for k, v in inside.items()}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    results = []
    for name, format in (("nested", "tars"), ("classes", "tars"), ("folders", "imagefolder")):
        source = open_source(dataset(format=format, images=5), record_of(tmp_path / name))
        images, labels = source.read(0, 5)
        assert labels.tolist() == [0, 1, 1, 2, 2]
        assert torch.equal(source.read(2, 4)[0], images[2:4])
        results.append(images)
    levels = ((results[0].mean((1, 2, 3)) + 1) * 127.5 - 30).round()
    assert levels.tolist() == pytest.approx([90, 10, 20, 40, 50], abs=2)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_headers_of_tars_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.tar").write_bytes(tar_of({f"{name}.tar": tar_of(CLASSES[name]) for name in CLASSES}))
    options = {"format": "tars", "images": 5}
    images, _ = open_source(dataset(**options), record_of(folder)).read(0, 5)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        again = open_source(dataset(**options), record_of(folder))
        assert torch.equal(again.read(0, 5)[0], images)
        with pytest.raises(ConfigError, match=r"dataset\.classes: found 3, the configuration says 4"):
            open_source(dataset(**options, classes=4), record_of(folder))
    (cache,) = tmp_path.rglob("*.tars.npz")
    for damaged in (b"", cache.read_bytes()[:300]):
        cache.write_bytes(damaged)
        assert torch.equal(open_source(dataset(**options), record_of(folder)).read(0, 5)[0], images)
    (folder / "a.tar").write_bytes(tar_of({f"{name}.tar": tar_of(CLASSES[name]) for name in IDS[:2]}))
    with pytest.raises(ConfigError, match=r"dataset\.images: found 3"):  # other content: read anew
        open_source(dataset(**options), record_of(folder))
    whole = tar_of({"x.tar": tar_of(CLASSES[IDS[1]])})
    (folder / "a.tar").write_bytes(whole[:2000])
    with pytest.raises(ConfigError, match=r"a\.tar: not a whole and uncompressed tar file"):
        open_source(dataset(**options), record_of(folder))


def test_class_ids_are_the_sorted_thousand() -> None:
    ids = class_ids("imagenet-1k")
    assert len(ids) == len(set(ids)) == 1000 and list(ids) == sorted(ids)
    assert (ids[0], ids[207], ids[999]) == ("n01440764", "n02099601", "n15075141")
    thousand = dataset(classes=1000, class_ids="imagenet-1k")
    check_folders("here", thousand, [f"train/{name}" for name in ids])
    strange = sorted([*ids[1:], "n00000001"])
    with pytest.raises(ConfigError, match=r"here: .* unknown \['n00000001'\], missing \['n01440764'\]"):
        check_folders("here", thousand, strange)
    with pytest.raises(ConfigError, match="not the classes of imagenet-1k in their order"):
        check_folders("here", thousand, [*ids[1:], ids[0]])
    with pytest.raises(ConfigError, match="found 999, the configuration says 1000"):
        check_folders("here", thousand, ids[1:])


def test_importing_sources_needs_no_pyarrow() -> None:
    assert "pyarrow" not in vars(archives)
