"""A finished training is gone on with from its kept state, as if it had been longer from the start."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from child_processes import child, signal_at_step
from tiny_pipeline import Call, TinyPipeline, refused, replaced
from trained_files import same

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256
from fewstep.common.provenance import is_stale
from fewstep.config.base import read_sealed, sealed
from fewstep.training.state import FINISHED, RECORD, STOPPED

METHODS = ["decm", "scm", "afm"]  # two updates a step; a module trained beside the network; a player
STEPS = {"train": {"steps": 14}}


def varied(pipeline: TinyPipeline, **methods) -> TinyPipeline:
    """With other entries, at a constant rate."""
    recipe = {"train": {"optimizer": {"decay": "constant"}}}
    return pipeline.varied({"settings": {"recipes": {"digits": recipe}}, "methods": methods})


@pytest.fixture(scope="module", params=METHODS)
def kept(request, pipeline: TinyPipeline, tmp_path_factory) -> tuple[str, Call]:
    """A method and its training, of which the state is kept."""
    call = varied(pipeline).train(request.param, tmp_path_factory.mktemp(f"kept-{request.param}"))
    call.more("--keep-state")()
    return request.param, call


def continued(pipeline: TinyPipeline, kept: tuple[str, Call], folder: Path) -> Call:
    """Goes on with a training to more steps."""
    method, first = kept
    entry = {"title": "longer", "recipe": "digits", "continues": method, **STEPS}
    return replaced(varied(pipeline, long=entry).train("long", folder), "--continued", str(first.out))


def test_continued_is_one_training_of_that_length(pipeline, kept, tmp_path):
    method, first = kept
    long = continued(pipeline, kept, tmp_path / "long")
    whole = varied(pipeline, **{method: STEPS}).train(method, tmp_path / "whole")
    long()
    whole()
    ours, theirs = (load_model(call.out)[0] for call in (long, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert long.outputs[1].read_bytes() == whole.outputs[1].read_bytes()
    (record,) = first.out.with_name(FINISHED).glob(f"step-*/{RECORD}")
    origin, card = load_model(long.out)[1]["continues"], load_model(first.out)[1]
    of_both = {"spec": card["spec"], "codes": [card["code"]]}
    assert origin == {"run": f"{method}/base", "steps": 8, "state": sha256(record), **of_both}


@pytest.mark.parametrize("kept", ["decm"], indirect=True)
def test_other_code_behind_a_state_is_told_and_makes_stale(pipeline, kept, tmp_path, capsys):
    """Also where that state was one of a training that went on with another's."""
    other = tmp_path / "other/model.safetensors"
    folder = shutil.copytree(kept[1].out.with_name(FINISHED), other.with_name(FINISHED))
    call = replaced(continued(pipeline, kept, tmp_path / "long"), "--continued", str(other))
    (path,) = folder.glob(f"step-*/{RECORD}")
    record = read_sealed(path, "a record")
    now, old = record["owner"]["training code"], "0" * 16
    for own, before, behind in (
        (old, None, [old]),
        (now, [old], [old, now]),
        (old, [now], [old, now]),
        (old, ["1" * 16, now], [old, "1" * 16, now]),
    ):
        record["owner"]["training code"] = own
        if before is not None:
            record["owner"]["continued codes"] = before
        path.write_text(sealed(record))
        call()
        assert "of a training with other code than now" in capsys.readouterr().out
        card = load_model(call.out)[1]
        assert card["continues"]["codes"] == sorted(behind)
        metrics = {"code": card["code"], "backbone_kind": "lightningdit", "model": card}
        assert is_stale(metrics) and not is_stale({**metrics, "model": {**card, "continues": {}}})


def test_continued_resumes_its_own_state(pipeline, kept, tmp_path):
    reference = continued(pipeline, kept, tmp_path / "reference")
    reference()
    call = continued(pipeline, kept, tmp_path / "stopped")
    assert child(call, tmp_path / "log", signal_at_step, step=10, number=signal.SIGTERM) == STOPPED
    call()
    same(call, reference)
    assert not list(call.out.parent.glob("*state*"))


def test_keeping_the_state_changes_nothing_and_training_anew_is_anew(pipeline, kept, tmp_path):
    method, first = kept
    bare = varied(pipeline).train(method, tmp_path)
    bare()
    same(bare, first)
    assert not (tmp_path / FINISHED).exists()
    folder = bare.out.with_name(FINISHED)
    shutil.copytree(first.out.with_name(FINISHED), folder)
    bare()
    same(bare, first)
    assert not folder.exists()


@pytest.mark.parametrize("kept", ["decm"], indirect=True)
def test_what_cannot_be_continued_is_refused(pipeline, kept, tmp_path):
    call = continued(pipeline, kept, tmp_path / "long")
    other = tmp_path / "other/model.safetensors"
    refused(replaced(call, "--continued", str(other)), "no state", "decm/base", "train it again")
    refused(replaced(call, "--continued"), "--continued", "needs")
    folder = shutil.copytree(kept[1].out.with_name(FINISHED), other.with_name(FINISHED))
    other_loss = continued(pipeline, kept, tmp_path / "spec")
    spec = json.loads(Path(other_loss.arguments[1]).read_text())
    spec["continues"]["spec"] = "0" * 16
    Path(other_loss.arguments[1]).write_text(json.dumps({**spec, "digest": None}))
    refused(replaced(other_loss, "--continued", str(other)), "another spec")
    (file,) = folder.glob("step-*/*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    refused(replaced(call, "--continued", str(other)), "checksum differs", "damaged", "again")
