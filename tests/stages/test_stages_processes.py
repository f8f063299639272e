"""One, two, or two with accumulated gradients: the same training, the same images."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from configs import ROOT
from stages_children import ranks
from stages_world import World

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256

# Gradients are summed in another order, and Adam divides them by their own size.
CLOSE = {"rtol": 2e-3, "atol": 2e-5}


def curve(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(call, reference) -> None:
    ours, theirs = (load_model(each.out)[0] for each in (call, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines, expected = curve(call.outputs[1]), curve(reference.outputs[1])
    assert [(line["step"], line["update"]) for line in lines] == [
        (line["step"], line["update"]) for line in expected
    ]
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        assert line == pytest.approx(other, rel=2e-3, abs=2e-5)
    # Before the first update only the order of the sum differs.
    assert lines[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    assert lines[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


@pytest.fixture(scope="module", params=["decm", "scm"])
def single(request, world: World, tmp_path_factory):
    call = world.train(request.param, tmp_path_factory.mktemp(f"single-{request.param}"))
    call()
    return request.param, call


def test_accumulation(world, single, tmp_path):
    method, reference = single
    call = world.train(method, tmp_path).more("--device-batch", "8")
    call()
    close(call, reference)
    assert sha256(call.out) != sha256(reference.out), "nothing was accumulated"


def test_two_processes(world, single, tmp_path):
    method, reference = single
    call = world.train(method, tmp_path)
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, reference)


def test_two_processes_that_accumulate(world, single, tmp_path):
    method, reference = single
    call = world.train(method, tmp_path).more("--device-batch", "8")
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, reference)


@pytest.mark.slow
def test_torchrun(world, single, tmp_path):
    """The real launcher, from a shell."""
    method, reference = single
    call = world.train(method, tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "fewstep.train", *call.arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    close(call, reference)


def test_a_batch_that_processes_cannot_share(world, tmp_path):
    call = world.varied({"methods": {"cd": {"train": {"global_batch_size": 33}}}}).train("cd", tmp_path)
    assert ranks(call, tmp_path) == [1, 1]
    for rank in (0, 1):
        text = (tmp_path / f"rank{rank}.log").read_text()
        assert "error: train.global_batch_size: 33 does not divide among 2 processes" in text
        assert "Traceback" not in text
    assert not call.out.exists()


def test_processes_that_do_not_see_each_other(world, tmp_path, monkeypatch):
    """Else each would train alone, and all write the same file."""
    import fewstep.train

    class Lone(fewstep.train.Accelerator):
        def __init__(self, **options):
            with pytest.MonkeyPatch.context() as hidden:
                hidden.delenv("WORLD_SIZE")
                super().__init__(**options)

    monkeypatch.setattr(fewstep.train, "Accelerator", Lone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    call = world.train("cd", tmp_path)
    with pytest.raises(ValueError, match="2 processes started, but accelerate sees 1"):
        call()


@pytest.mark.parametrize("count", [2, 3])
def test_images_do_not_depend_on_processes(world, tmp_path, monkeypatch, count):
    """More than one round, and a last one in which not every process has work."""
    import fewstep.sample

    monkeypatch.setattr(fewstep.sample, "CHUNK", 8)
    call = world.sample("cd", "cm-2", tmp_path / "one")
    call()
    many = world.sample("cd", "cm-2", tmp_path / "many")
    assert ranks(many, tmp_path, count=count, fate=small_chunks) == [0] * count, (
        tmp_path / "rank0.log"
    ).read_text()
    assert sha256(many.out) == sha256(call.out)


def small_chunks() -> None:
    import fewstep.sample

    fewstep.sample.CHUNK = 8
