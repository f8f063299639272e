"""Files that would take far more memory than they have bytes are refused before they take it."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from child_processes import in_little_memory
from data_factories import tar_of
from PIL import Image
from pyarrow import parquet

from fewstep.common import array_files
from fewstep.common.array_files import open_npz
from fewstep.common.tensor_files import load_tensors
from fewstep.config.assets import Asset
from fewstep.config.settings import Dataset
from fewstep.data import archives, image_files
from fewstep.data.asset_files import read_record
from fewstep.data.fetching import fetch_asset
from fewstep.data.image_files import read_image
from fewstep.data.shards import scan_shard
from fewstep.data.sources import open_source
from fewstep.evaluation.image_archive import open_images

ROOM = 32 << 20
LARGE = 4 * ROOM


def test_the_limit_is_one():
    assert in_little_memory(bytes, LARGE, limit=ROOM).startswith("MemoryError")
    assert in_little_memory(bytes, ROOM // 2, limit=ROOM) == ""


def png(width: int, height: int, colour: int = 0) -> bytes:
    """A PNG of a few bytes whose header says any size; ``colour`` 2 is RGB, 6 has transparency."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def decode(content: bytes) -> None:
    read_image(io.BytesIO(content), 3, 8, "adm")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((20_000, 20_000), "Image size (400000000 pixels) exceeds limit"),
        ((10_000, 8_948), "is 10000x8948: more than 89478485 pixels"),
        ((80_000_000, 1), "is 80000000x1: one side is over 100 times the other"),
    ],
)
@pytest.mark.parametrize("colour", [0, 2, 6])
def test_images(size, message, colour):
    assert message in in_little_memory(decode, png(*size, colour), limit=ROOM)


def test_webp():
    """Whose decoder asks for the memory of the whole picture when it is opened."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "webp", lossless=True)
    content = bytearray(stream.getvalue())
    place = content.index(b"VP8L") + 9  # width and height less one, 14 bits each
    content[place : place + 4] = struct.pack("<I", 9_999 | 9_999 << 14)
    told = in_little_memory(decode, bytes(content), limit=ROOM)
    assert told and not told.startswith("Memory"), told


def test_profiles_of_images():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "png")
    content, profile = stream.getvalue(), chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(LARGE)))
    assert "Memory" not in in_little_memory(decode, content[:33] + profile + content[33:], limit=ROOM)


def test_other_formats_are_not_opened():
    """Pillow hands EPS to Ghostscript."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(content)


def npz(path: Path, shape: str, content: int, declared: int | None = None) -> Path:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        array = b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + bytes(content)
        archive.writestr("x.npy", array)
    return path


def load(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, open_npz(path) as content:
        patch.setattr(array_files, "MOST_BYTES", ROOM)
        content["x"]


def test_arrays(tmp_path):
    lie = npz(tmp_path / "lie.npz", f"({LARGE},)", 100)
    assert "x is an array of" in in_little_memory(load, lie, limit=ROOM)
    bomb = npz(tmp_path / "bomb.npz", f"({LARGE},)", LARGE)
    assert bomb.stat().st_size < ROOM // 16
    assert f"(most: {ROOM})" in in_little_memory(load, bomb, limit=ROOM)
    load(npz(tmp_path / "good.npz", "(100,)", 100))


def fetched(folder: Path, name: str, content: bytes) -> Path:
    (folder / "files").mkdir()
    (folder / "files" / name).write_bytes(content)
    record = folder / "mine.json"
    fetch_asset("mine", Asset(kind="local", licence="own", path=str(folder / "files")), record)
    return record


def read(record: Path, kind: str, images: int = 1) -> None:
    archives.GROUP_BYTES = image_files.IMAGE_BYTES = ROOM // 2
    dataset = Dataset(asset="mine", format=kind, resolution=8, classes=1, images=images, crop="adm")
    open_source(dataset, read_record(record)).read(0, images)


def sparse(name: str, size: int) -> bytes:
    """A member without content, in the format of GNU tar, that reads as ``size`` zeros."""
    member = tarfile.TarInfo(name)
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = b"%011o\0" % size  # one piece of no bytes at the end
    block[398:410] = b"%011o\0" % 0
    block[483:495] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def oversized(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)


@pytest.mark.parametrize("member", [sparse, oversized])
def test_members_of_tars(tmp_path, member):
    """An image, a label, the card of a shard, the checksums of images."""
    message = "is sparse, or ends outside of the file"
    for number, (kind, content) in enumerate(
        {
            "tars": member("0.png", LARGE) + END,
            "webdataset": tar_of({"0.png": png(8, 8)})[:1024] + member("0.cls", LARGE) + END,
        }.items()
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        record = fetched(folder, "c0.tar", content)
        assert message in in_little_memory(read, record, kind, limit=ROOM)
    shard = tmp_path / "shard.tar"
    shard.write_bytes(member("__meta__/card.json", LARGE) + END)
    assert message in in_little_memory(scan_shard, shard, limit=ROOM)
    shard.write_bytes(tar_of({"card.json": b"{}"})[:1024] + member("sha256.json", LARGE) + END)
    assert message in in_little_memory(open_images, shard, limit=ROOM)


def test_a_tar_of_a_huge_image(tmp_path):
    image = tmp_path / "image.tar"
    with image.open("wb") as stream:
        stream.write(oversized("0.png", LARGE))
        stream.truncate(512 + LARGE + 1024)
    record = fetched(tmp_path, "c0.tar", b"")
    (tmp_path / "files/c0.tar").unlink()
    image.rename(tmp_path / "files/c0.tar")
    record.with_suffix("").unlink()
    fetch_asset("mine", Asset(kind="local", licence="own", path=str(tmp_path / "files")), record)
    assert "which is no image" in in_little_memory(read, record, "tars", limit=ROOM)


def test_a_packed_tar_is_refused(tmp_path):
    content = zlib.compress(bytes(LARGE), wbits=31)
    assert "not a whole and uncompressed tar" in in_little_memory(
        read, fetched(tmp_path, "c0.tar", content), "tars", limit=ROOM
    )


def parquet_of(images: list[bytes]) -> bytes:
    stream = io.BytesIO()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": image, "path": "a.png"} for image in images], kind)
    table = pa.table({"image": column, "label": pa.array([0] * len(images), pa.int64())})
    parquet.write_table(table, stream, dictionary_pagesize_limit=1 << 30)
    return stream.getvalue()


def test_row_groups_of_parquet_files(tmp_path):
    content = parquet_of([bytes(LARGE)])
    assert len(content) < LARGE // 16
    told = in_little_memory(read, fetched(tmp_path, "a.parquet", content), "parquet", limit=ROOM)
    assert "row group 0 has" in told, told


def test_one_value_in_many_rows(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "png")
    image = stream.getvalue() + bytes(1 << 20)
    content = parquet_of([image] * (2 * LARGE >> 20))
    assert len(content) < ROOM // 16
    record = fetched(tmp_path, "a.parquet", content)
    assert in_little_memory(read_four, record, 2 * LARGE >> 20, limit=ROOM) == ""


def read_four(record: Path, images: int) -> None:
    dataset = Dataset(asset="mine", format="parquet", resolution=8, classes=1, images=images)
    assert open_source(dataset, read_record(record)).read(0, 4)[0].shape == (4, 3, 8, 8)


def test_files_of_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (LARGE, LARGE)
    for content in (struct.pack("<Q", LARGE) + b"{}", struct.pack("<Q", len(header)) + header + bytes(10)):
        path.write_bytes(content)
        assert "not a safetensors file" in in_little_memory(load_tensors, path, limit=ROOM)
    whole, packed = tmp_path / "whole.pt", tmp_path / "packed.pt"
    torch.save({"x": torch.zeros(LARGE, dtype=torch.uint8)}, whole)
    with (
        zipfile.ZipFile(whole) as old,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "not a torch file" in in_little_memory(load_tensors, packed, limit=ROOM)


def test_a_table_of_numbers_takes_what_it_is(tmp_path):
    """The other side of the limits: an ordinary file is read."""
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    with open_npz(tmp_path / "a.npz") as content:
        assert content["x"].tolist() == [[0, 1, 2], [3, 4, 5]] and "x" in content and "y" not in content
