"""Bits that flipped in the files of a fetched data set: refused when it is read, or without effect."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from campaign import ACCEPTED, COUNT, count_damage
from data_factories import tar_of
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from fewstep.config import ConfigError
from fewstep.config.assets import Asset
from fewstep.config.settings import Dataset
from fewstep.data import asset_files
from fewstep.data.asset_files import RecordBody, RecordFile, VerifiedFile, read_record
from fewstep.data.captions import read_captions
from fewstep.data.fetching import fetch_asset
from fewstep.data.sources import PublishedLatents, open_source


def bmp(number: int) -> bytes:
    """An image of which every bit counts, unlike those of a JPEG."""
    stream = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(stream, "bmp")
    return stream.getvalue()


NAMES = [(f"c{k % 2}", f"{k}.bmp", bmp(k)) for k in range(6)]


def folders(folder: Path) -> None:
    for name, image, content in NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / image).write_bytes(content)


def class_tars() -> dict[str, bytes]:
    return {f"{c}.tar": tar_of({image: x for name, image, x in NAMES if name == c}) for c in ("c0", "c1")}


def tars(folder: Path) -> None:
    for name, content in class_tars().items():
        (folder / name).write_bytes(content)


def nested_tars(folder: Path) -> None:
    (folder / "train.tar").write_bytes(tar_of(class_tars()))


def webdataset(folder: Path) -> None:
    for start in (0, 3):
        members = {}
        for name, image, content in NAMES[start : start + 3]:
            members |= {image: content, image.replace("bmp", "cls"): name[1:].encode()}
        (folder / f"{start}.tar").write_bytes(tar_of(members))


def captioned(folder: Path) -> None:
    for start in (0, 3):
        members = {}
        for name, image, content in NAMES[start : start + 3]:
            members |= {image: content, image.replace("bmp", "json"): b'{"prompt": "%s"}' % name.encode()}
        (folder / f"{start}.tar").write_bytes(tar_of(members))


def rows(folder: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": x, "path": image} for _, image, x in NAMES], kind)
    table = pa.table({"image": images, "label": [int(name[1:]) for name, *_ in NAMES]})
    parquet.write_table(table, folder / "a.parquet", row_group_size=2)


def published(folder: Path) -> None:
    for start in (0, 3):
        latents = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(start))
        content = {"latents": latents, "labels": torch.arange(3) % 2}
        save_file(content, folder / f"{start}.safetensors")


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "folders": ("imagefolder", folders),
    "tars of classes": ("tars", tars),
    "tar of tars": ("tars", nested_tars),
    "webdataset": ("webdataset", webdataset),
    "captions": ("captioned-tars", captioned),
    "parquet": ("parquet", rows),
    "published latents": ("latents-safetensors", published),
}


def read(record: Path, dataset: Dataset) -> list[list[Any]]:
    opened = read_record(record)
    if dataset.format == "latents-safetensors":
        source: object = PublishedLatents(dataset, [4, 2, 2], 1, opened)
    else:
        source = open_source(dataset, opened)
    parts = [source.read(start, start + 2) for start in (0, 2, 4)]
    captions = [read_captions(dataset, record)] if dataset.captioned else []
    return [torch.cat(part).flatten().tolist() for part in zip(*parts, strict=True)] + captions


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("blocks", [True, False])
def test_a_flipped_bit_is_not_accepted(tmp_path, monkeypatch, kind, blocks):
    """With and without what is kept of the headers of tars; with a record of before blocks had checksums."""
    monkeypatch.setattr(asset_files, "BLOCK", 700)
    format, write = FORMATS[kind]
    folder, record = tmp_path / "files", tmp_path / "assets" / "mine.json"
    folder.mkdir()
    write(folder)
    fetch_asset("mine", Asset(kind="local", licence="own", path=str(folder)), record)
    if not blocks:
        body = read_record(record).body
        files = [file.model_copy(update={"blocks": ""}) for file in body.files]
        record.write_text(RecordBody(**{**dict(body), "files": files}).model_dump_json())
    classes = 6 if format == "captioned-tars" else 2
    dataset = Dataset(asset="mine", format=format, resolution=8, classes=classes, images=6)
    expected = read(record, dataset)
    draws = random.Random(kind)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    outcomes: Counter[str] = Counter()
    for number in range(COUNT if blocks else COUNT // 4):
        path = draws.choice(paths)
        whole = path.read_bytes()
        content = bytearray(whole)
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(content)
        if number % 2:
            for cache in record.parent.glob("mine.*.npz"):
                cache.unlink()
        try:
            found = read(record, dataset)
        except ValueError as error:
            assert path.name in str(error) or record.name in str(error), error
            outcomes["refused by name"] += 1
        else:
            outcomes["without effect" if found == expected else ACCEPTED] += 1
        path.write_bytes(whole)
        with suppress(ConfigError):  # what was kept of a damaged file is noticed, if there is any
            read(record, dataset)
        assert read(record, dataset) == expected
    count_damage(outcomes)


def test_a_part_of_a_file_is_verified_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(asset_files, "BLOCK", 10)
    (tmp_path / "files").mkdir()
    path = tmp_path / "files/a.bin"
    path.write_bytes(bytes(range(95)))
    record = tmp_path / "mine.json"
    fetch_asset("mine", Asset(kind="local", licence="own", path=str(path.parent)), record)
    path.write_bytes(bytes([*range(50), 0, *range(51, 95)]))
    with read_record(record).open("a.bin") as file:
        assert file.read(50) == bytes(range(50)) and file.tell() == 50
        file.seek(-35, io.SEEK_END)
        assert file.read() == bytes(range(60, 95)) and file.read(1) == b""
        file.seek(45)
        with pytest.raises(ValueError, match=r"a\.bin: damaged: its MiB 5 is not the one"):
            file.read(6)


class Trickling(io.FileIO):
    """Gives fewer bytes than are asked for, as a raw file may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


def test_reads_that_are_short_are_completed_and_a_short_file_is_refused(tmp_path, monkeypatch):
    """Without checksums too: nothing else would say that bytes are missing."""
    monkeypatch.setattr(asset_files, "BLOCK", 8)
    path, content = tmp_path / "x", bytes(range(20))
    path.write_bytes(content)
    monkeypatch.setattr(Path, "open", lambda path, *mode, **more: Trickling(path))
    file = RecordFile(name="x", bytes=20, sha256="0" * 64, source="here")
    with VerifiedFile(path, file) as stream:
        assert stream.read() == content
    for size in (18, 16):
        os.truncate(path, size)
        with VerifiedFile(path, file) as stream, pytest.raises(ConfigError, match="x: damaged: its MiB 2 "):
            stream.read()
