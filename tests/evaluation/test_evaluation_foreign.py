"""Images from elsewhere: the same numbers as for our own, a card, and one line for each kind of bad input."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import TinyPipeline

from fewstep import images, score
from fewstep.config import ConfigError
from fewstep.config.base import read_sealed
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


def test_bad_images(folder, tmp_path):
    with pytest.raises(ConfigError, match="3 images, but the protocol wants 4"):
        open_foreign(folder, SHAPE, 4)
    with pytest.raises(ConfigError, match=r"0\.png: is 4x4, not 8x8"):
        open_foreign(folder, (3, 8, 8), 3).images(0)
    for mode in ("L", "RGBA"):
        Image.new(mode, (4, 4)).save(folder / "1.png")
        with pytest.raises(ConfigError, match=f"1.png: has mode {mode}, not RGB"):
            open_foreign(folder, SHAPE, 3).images(0)
    noise = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "1.png")
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match=r"1\.png: .*truncated"):
        open_foreign(folder, SHAPE, 3).images(0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no images"):
        open_foreign(tmp_path / "empty", SHAPE, 3)
    with pytest.raises(ConfigError, match="no such file or folder"):
        open_foreign(tmp_path / "absent", SHAPE, 3)


def test_bad_arrays_and_tars(tmp_path):
    path = tmp_path / "x.npz"
    for arrays, message in (
        ({"arr_0": np.array([{}], dtype=object)}, "or of objects"),
        ({"arr_0": np.zeros((3, 4, 4, 3), np.float32)}, "not uint8"),
        ({"arr_0": np.zeros((3, 8, 8, 3), np.uint8)}, "images are"),
        ({"other": np.zeros(3)}, "no images"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=message):
            open_foreign(path, SHAPE, 3)
    for name in ("x.npz", "x.tar"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=f"{name}: not a"):
            open_foreign(tmp_path / name, SHAPE, 3)


@pytest.fixture(scope="module")
def cell(pipeline: TinyPipeline) -> tuple[Path, Path, dict]:
    """The samples of a cell, their spec, and its metrics."""
    key = {"run": "cd/base", "seed": "0", "sampler": "cm", "steps": "2"}
    name = pipeline.plan.image_set("digits")
    tar = Path(pipeline.plan.file("images", images=name, **key))
    spec = pipeline.spec("sample", f"cd/base/cm-2/{name}", pipeline.folder / "specs-of-images")
    metrics = read_sealed(pipeline.plan.file("metrics", protocol="digits", **key), "metrics")
    return tar, spec, metrics


@pytest.mark.parametrize("form", ["x.npz", "pngs"])
def test_our_own_samples_score_the_same_from_elsewhere(pipeline, cell, tmp_path, monkeypatch, form):
    tar, spec, metrics = cell
    images.main(["--spec", str(spec), "--images", str(tar), "--out", str(tmp_path / form)])
    monkeypatch.setattr(score, "read_plan", lambda config: pipeline.plan)
    out = tmp_path / "score.json"
    score.main(["--images", str(tmp_path / form), "--protocol", "digits", "--out", str(out)])
    found = json.loads(out.read_text())
    assert [found[name] for name in ("fid", "kid", "is")] == [metrics[name] for name in ("fid", "kid", "is")]
    assert found["status"] == "from elsewhere" and found["source"]["path"] == str(tmp_path / form)
    assert "cell" not in found


def test_an_npz_holds_images_and_labels(cell, tmp_path):
    tar, spec, _ = cell
    images.main(["--spec", str(spec), "--images", str(tar), "--out", str(tmp_path / "x.npz")])
    archive = open_images(tar)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as content:
        assert np.array_equal(content["arr_0"], archive.images(0).transpose(0, 2, 3, 1))
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
