"""Images from elsewhere: the same numbers as for our own, a card, and one line for each kind of bad input."""

from __future__ import annotations

import io
import json
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from child_processes import in_two_processes
from PIL import Image
from tiny_pipeline import TinyPipeline

from fewstep import images, score
from fewstep.common.files import sha256
from fewstep.config import ConfigError
from fewstep.config.base import read_sealed
from fewstep.evaluation import foreign_images
from fewstep.evaluation.foreign_images import open_foreign
from fewstep.evaluation.image_archive import open_images

SHAPE = (3, 4, 4)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three RGB images of 4x4."""
    path = tmp_path / "images"
    path.mkdir()
    for number in range(3):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path / f"{number}.png")
    return path


def test_one_set_of_images_in_three_forms(folder, tmp_path):
    arrays = np.stack([np.asarray(Image.open(folder / f"{number}.png")) for number in range(3)])
    np.savez(tmp_path / "x.npz", arr_0=arrays, arr_1=np.arange(3))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(3):
            tar.add(folder / f"{number}.png", f"{number:04d}.png")
            tar.addfile(tarfile.TarInfo(f"{number:04d}.json"), io.BytesIO())
    for path, kind in ((folder, "folder"), (tmp_path / "x.npz", "npz"), (tmp_path / "x.tar", "webdataset")):
        found = open_foreign(path, SHAPE, 3, prompts=2)
        assert np.array_equal(found.images(0), arrays.transpose(0, 3, 1, 2))
        assert found.labels(0).tolist() == [0, 1, 0] and found.sizes == [3]
        assert (found.card["kind"], found.card["count"], found.card["path"]) == (kind, 3, str(path))
        assert found.card["image"] == [3, 4, 4] and len(found.card["sha256"]) == 64


def test_the_card_s_checksum_is_of_names_and_contents(folder):
    first = open_foreign(folder, SHAPE, 3).card["sha256"]
    (folder / "2.png").rename(folder / "3.png")
    renamed = open_foreign(folder, SHAPE, 3).card["sha256"]
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(folder / "3.png")
    assert len({first, renamed, open_foreign(folder, SHAPE, 3).card["sha256"]}) == 3


def told(path: Path, shape: tuple[int, ...] = SHAPE, count: int = 3) -> str:
    """What is said of images that cannot be scored, in one line that begins with a file's name."""
    with pytest.raises(ValueError) as error:
        open_foreign(path, shape, count).images(0)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))
    return str(error.value)


def png(pixels: np.ndarray) -> bytes:
    """The content of a PNG of 8 bits, or of 16, of three channels: Pillow writes none of these."""
    height, width, channels = pixels.shape
    assert channels == 3
    bits = 8 * pixels.itemsize
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(pixels.dtype.newbyteorder(">")))
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0), b"IDAT": zlib.compress(rows)}
    found = b"\x89PNG\r\n\x1a\n"
    for name, content in (parts | {b"IEND": b""}).items():
        found += struct.pack(">I", len(content)) + name + content
        found += struct.pack(">I", zlib.crc32(name + content))
    return found


def test_images_of_another_number_size_or_place(folder, tmp_path):
    assert "3 images, but the protocol wants 4" in told(folder, count=4)
    assert "0.png: is 4x4, not 8x8, and nothing is resized" in told(folder, (3, 8, 8))
    Image.new("RGB", (8, 4)).save(folder / "1.png")
    assert "1.png: is 8x4, not 4x4" in told(folder)
    (tmp_path / "empty").mkdir()
    assert "holds no images (.bmp, .jpeg, .jpg, .png, .webp)" in told(tmp_path / "empty")
    assert "no such file or folder" in told(tmp_path / "absent")
    (tmp_path / "x.zip").write_bytes(b"")
    assert "is no folder, .npz or .tar" in told(tmp_path / "x.zip")


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_images_of_another_mode(folder, mode):
    Image.new(mode, (4, 4)).save(folder / "1.png")
    assert f"1.png: has mode {mode}, not RGB; convert it first" in told(folder)


def test_grey_images_are_of_eight_bits(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "0.png")
    assert open_foreign(tmp_path, (1, 4, 4), 1).images(0).shape == (1, 1, 4, 4)
    for mode in ("I;16", "1", "RGB"):
        Image.new(mode, (4, 4)).save(tmp_path / "0.png")
        assert f"0.png: has mode {mode}, not L" in told(tmp_path, (1, 4, 4), 1)


def test_colours_of_sixteen_bits_are_not_cut_to_eight(folder):
    """Which Pillow does without a word."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    (folder / "1.png").write_bytes(png(pixels))
    assert np.array_equal(open_foreign(folder, SHAPE, 3).images(0)[1], pixels.transpose(2, 0, 1))
    (folder / "1.png").write_bytes(png(pixels.astype(np.uint16) * 257))
    assert "1.png: has 16 bits in a channel, not 8; convert it first" in told(folder)


def test_damaged_images(folder, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])
    assert "1.png: " in told(folder) and "truncated" in told(folder)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(3):
            tar.add(folder / f"{number}.png", f"{number}.png")
    assert "x.tar: 1.png: " in told(tmp_path / "x.tar") and "truncated" in told(tmp_path / "x.tar")
    (folder / "1.png").write_bytes(b"")
    assert "1.png: " in told(folder)


def test_bad_arrays(tmp_path):
    path = tmp_path / "x.npz"
    right = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    for arrays, message in (
        ({"arr_0": np.array([{}], dtype=object)}, "or of objects"),
        ({"arr_0": right.astype(np.float32)}, "arr_0 is float32 (3, 4, 4, 3), not uint8 (n, H, W, C)"),
        ({"arr_0": right[0]}, "arr_0 is uint8 (4, 4, 3), not uint8 (n, H, W, C)"),
        ({"arr_0": np.asfortranarray(right)}, "in Fortran order"),
        ({"arr_0": right.transpose(0, 3, 1, 2)[..., :3].copy()}, "images are (3, 3, 4), but the protocol's"),
        ({"arr_0": right[:0]}, "0 images, but the protocol wants 3"),
        ({"other": right}, "holds other.npy and no images (arr_0)"),
    ):
        np.savez(path, **arrays)
        assert message in told(path)
    with zipfile.ZipFile(path, "w") as made, made.open("arr_0.npy", "w") as stream:
        np.lib.format.write_array(stream, right, allow_pickle=False)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "w") as made, made.open("arr_0.npy", "w") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": (3, 4, 4, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(right.tobytes()[:-1])
    assert "arr_0 ends before its last image" in told(path)
    path.write_bytes(whole[: len(whole) // 2])
    assert "not an npz file" in told(path)
    np.savez_compressed(path, arr_0=right)
    assert np.array_equal(open_foreign(path, SHAPE, 3).images(0), right.transpose(0, 3, 1, 2))


def test_files_that_are_no_archives(folder, tmp_path):
    for name in ("x.npz", "x.tar"):
        (tmp_path / name).write_bytes(b"nothing")
        assert f"{name}: not a" in told(tmp_path / name)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.json"), io.BytesIO())
    assert "x.tar: holds no images" in told(tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(folder, "images")
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: 512 * 3 + 100])
    assert "x.tar: " in told(tmp_path / "x.tar")


def _open_in_a_process(rank: int, folder: Path, out: Path) -> None:
    hashed = []
    foreign_images.sha256 = lambda path: hashed.append(path) or sha256(path)
    card = open_foreign(folder, SHAPE, 3).card
    (out / f"{rank}.json").write_text(json.dumps([card, len(hashed)]))


def test_several_processes_hash_the_images_once(folder, tmp_path):
    in_two_processes(_open_in_a_process, folder, tmp_path)
    (first, by_first), (second, by_second) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first == second == open_foreign(folder, SHAPE, 3).card
    assert (by_first, by_second) == (3, 0)


@pytest.fixture(scope="module")
def cell(pipeline: TinyPipeline) -> tuple[Path, Path, dict]:
    """The samples of a cell, their spec, and its metrics."""
    key = {"run": "cd/base", "seed": "0", "sampler": "cm", "steps": "2"}
    name = pipeline.plan.image_set("digits")
    tar = Path(pipeline.plan.file("images", images=name, **key))
    spec = pipeline.spec("sample", f"cd/base/cm-2/{name}", pipeline.folder / "specs-of-images")
    metrics = read_sealed(pipeline.plan.file("metrics", protocol="digits", **key), "metrics")
    return tar, spec, metrics


@pytest.mark.parametrize("form", ["x.npz", "pngs", "x.tar"])
def test_our_own_samples_score_the_same_from_elsewhere(pipeline, cell, tmp_path, monkeypatch, form):
    tar, spec, metrics = cell
    made = "pngs" if form == "x.tar" else form
    images.main(["--spec", str(spec), "--images", str(tar), "--out", str(tmp_path / made)])
    if form == "x.tar":
        with tarfile.open(tmp_path / form, "w") as packed:
            packed.add(tmp_path / made, "")
    monkeypatch.setattr(score, "read_plan", lambda config: pipeline.plan)
    out = tmp_path / "score.json"
    score.main(["--images", str(tmp_path / form), "--protocol", "digits", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [found[name] for name in ("fid", "kid", "is")] == [metrics[name] for name in ("fid", "kid", "is")]
    assert found["status"] == "from elsewhere" and found["source"]["path"] == str(tmp_path / form)
    assert "cell" not in found


def test_a_folder_of_pngs_is_whole_and_holds_nothing_else(cell, tmp_path, monkeypatch):
    """Half of it is not there; Snakemake leaves a hidden file in a folder."""
    tar, spec, _ = cell
    out = tmp_path / "pngs"
    call = ["--spec", str(spec), "--images", str(tar), "--out", f"{out}/"]
    save = Image.Image.save

    def full(image: Image.Image, path: Path) -> None:
        if path.name == "000003.png":
            raise OSError(28, "No space left on device")
        save(image, path)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            images.main(call)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / ".snakemake_timestamp").touch()
    images.main(call)
    assert sorted(path.name for path in out.iterdir()) == [f"{place:06d}.png" for place in range(40)]
    (out / "000000.png").unlink()
    with pytest.raises(ValueError, match="pngs: is not empty; name a new folder, or empty it"):
        images.main(call)
    assert len(list(out.iterdir())) == 39


def test_an_npz_is_what_adm_s_evaluator_reads(cell, tmp_path):
    """It streams `arr_0.npy` out of the zip: version 1 or 2 of the header, C order, uint8 (N, H, W, C)."""
    tar, spec, _ = cell
    path = tmp_path / "x.npz"
    images.main(["--spec", str(spec), "--images", str(tar), "--out", str(path)])
    archive = open_images(tar)
    with zipfile.ZipFile(path) as opened, opened.open("arr_0.npy") as stream:
        assert np.lib.format.read_magic(stream) == (1, 0)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        assert (shape, fortran_order, dtype) == ((40, 8, 8, 1), False, np.dtype(np.uint8))
        pixels = np.frombuffer(stream.read(), dtype).reshape(shape)
    assert np.array_equal(pixels, archive.images(0).transpose(0, 2, 3, 1))
    with np.load(path, allow_pickle=False) as content:
        assert set(content) == {"arr_0", "arr_1"}, "with `mu` in it no images would be looked at"
        assert np.array_equal(content["arr_0"], pixels)
        assert np.array_equal(content["arr_1"], archive.labels(0))


def test_bad_calls(pipeline, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "read_plan", lambda config: pipeline.plan)
    words = ["--images", str(folder), "--out", str(tmp_path / "x.json")]
    for more, message in (
        ([], "give --spec"),
        (["--protocol", "digit"], "protocol: unknown name 'digit'"),
        (["--protocol", "digits"], "3 images, but the protocol wants 40"),
    ):
        with pytest.raises(ConfigError, match=message):
            score.main([*words, *more])
    moved = Path(pipeline.plan.file("statistics", protocol="digits"))
    shutil.move(moved, moved.with_suffix(".away"))
    try:
        with pytest.raises(ConfigError, match=r"needs .*digits\.npz, which is not there: make it"):
            score.main([*words, "--protocol", "digits"])
    finally:
        shutil.move(moved.with_suffix(".away"), moved)
    assert not (tmp_path / "x.json").exists()
