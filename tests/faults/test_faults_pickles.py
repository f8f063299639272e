"""No pickle runs, wherever one is planted."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from read_files import KINDS, state
from tiny_pipeline import TinyPipeline

from fewstep.evaluation.image_archive import open_images, write_images

MARK = "FEWSTEP_PICKLE_RAN"


class Evil:
    """An object whose pickle sets an environment variable when it is loaded."""

    def __reduce__(self):
        return exec, (f"import os; os.environ['{MARK}'] = 'yes'",)


@pytest.fixture(autouse=True)
def _nothing_ran(monkeypatch):
    monkeypatch.delenv(MARK, raising=False)
    yield
    assert MARK not in os.environ


def plain(whole: bytes) -> bytes:
    return pickle.dumps(Evil())


def torch_file(whole: bytes) -> bytes:
    stream = io.BytesIO()
    torch.save({"weights": Evil()}, stream)
    return stream.getvalue()


def arrays(whole: bytes) -> bytes:
    """An npz of objects, under the names that the file has."""
    names = ["mu", "sigma", "features", "shape", "extractor"]
    if zipfile.is_zipfile(io.BytesIO(whole)):
        names = [name.removesuffix(".npy") for name in zipfile.ZipFile(io.BytesIO(whole)).namelist()]
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array([Evil()], dtype=object) for name in names})
    return stream.getvalue()


def test_the_mark_is_seen(monkeypatch):
    pickle.loads(plain(b""))
    assert os.environ.pop(MARK) == "yes"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_place_of_a_file_is_refused(pipeline: TinyPipeline, tmp_path, kind):
    case = KINDS[kind](pipeline, tmp_path)
    case.before()
    whole = case.path.read_bytes()
    for made in (plain, torch_file, arrays):
        for path in case.call.outputs:
            path.unlink(missing_ok=True)
        case.before()
        case.path.write_bytes(made(whole))
        if "saved state" in kind:  # which is discarded
            case.call()
            continue
        with pytest.raises(ValueError, match=case.path.name):
            case.call()


@pytest.mark.parametrize(
    "name", ["custom_checkpoint_1.pkl", ".metadata", "random_states_0.pkl", "optimizer.bin"]
)
def test_pickles_beside_a_saved_state(pipeline: TinyPipeline, tmp_path, name):
    case = state(pipeline, tmp_path, "step-*/state.json")
    case.before()
    for folder in (case.path.parent, case.path.parent.parent):
        (folder / name).write_bytes(plain(b""))
    case.call()
    assert case.call.out.read_bytes() == pipeline.train("cd").out.read_bytes()


@pytest.mark.parametrize("member", ["images", "labels"])
def test_objects_in_an_image_archive(pipeline: TinyPipeline, tmp_path, member):
    """With the right checksum."""
    case = KINDS["images"](pipeline, tmp_path)
    archive = open_images(case.path)
    parts = {"images": archive.images(0), "labels": archive.labels(0)}
    with pytest.MonkeyPatch.context() as patch:
        save = np.save

        def objects(stream, values, allow_pickle):
            spoilt = values is parts[member]
            save(stream, np.array([Evil()], object) if spoilt else values, allow_pickle=spoilt)

        patch.setattr(np, "save", objects)
        write_images(case.path, archive.card, [(parts["images"], parts["labels"])])
    if member == "images":
        with pytest.raises(ValueError, match=case.path.name):
            case.call()
    else:
        with pytest.raises(ValueError, match=case.path.name):
            open_images(case.path).labels(0)


def test_objects_in_a_shard(pipeline: TinyPipeline, tmp_path):
    import tarfile

    from fewstep.data.shards import scan_shard

    content = io.BytesIO()
    np.save(content, np.array([Evil()], object), allow_pickle=True)
    shard = Path(pipeline.plan.inputs("manifest", {"latents": "digits-pixels"})["shards"][0])
    path = tmp_path / shard.name
    with tarfile.open(shard) as old, tarfile.open(path, "w") as new:
        for entry in old:
            stream = old.extractfile(entry)
            data = content.getvalue() if entry.name.endswith(".latent.npy") else stream.read()
            entry.size = len(data)
            new.addfile(entry, io.BytesIO(data))
    with pytest.raises(ValueError, match=path.name):
        scan_shard(path)
