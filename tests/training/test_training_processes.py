"""One, two, or two with accumulated gradients: the same training, the same images."""

from __future__ import annotations

import subprocess
import sys

import pytest
from child_processes import ranks
from configs import ROOT
from tiny_pipeline import TinyPipeline
from trained_files import close

from fewstep.common.files import sha256


@pytest.fixture(scope="module", params=["decm", "scm"])
def single(request, pipeline: TinyPipeline, tmp_path_factory):
    call = pipeline.train(request.param, tmp_path_factory.mktemp(f"single-{request.param}"))
    call()
    return request.param, call


def test_accumulation(pipeline, single, tmp_path):
    method, reference = single
    call = pipeline.train(method, tmp_path).more("--device-batch", "8")
    call()
    close(call, reference)
    assert sha256(call.out) != sha256(reference.out), "nothing was accumulated"


def test_two_processes(pipeline, single, tmp_path):
    method, reference = single
    call = pipeline.train(method, tmp_path)
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, reference)


def test_two_processes_that_accumulate(pipeline, single, tmp_path):
    method, reference = single
    call = pipeline.train(method, tmp_path).more("--device-batch", "8")
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, reference)


@pytest.mark.slow
def test_torchrun(pipeline, single, tmp_path):
    """The real launcher, from a shell."""
    method, reference = single
    call = pipeline.train(method, tmp_path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "fewstep.train", *call.arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    close(call, reference)


def test_a_batch_that_processes_cannot_share(pipeline, tmp_path):
    call = pipeline.varied({"methods": {"cd": {"train": {"global_batch_size": 33}}}}).train("cd", tmp_path)
    assert ranks(call, tmp_path) == [1, 1]
    for rank in (0, 1):
        text = (tmp_path / f"rank{rank}.log").read_text()
        assert "error: train.global_batch_size: 33 does not divide among 2 processes" in text
        assert "Traceback" not in text
    assert not call.out.exists()


def test_processes_that_do_not_see_each_other(pipeline, tmp_path, monkeypatch):
    """Else each would train alone, and all write the same file."""
    from fewstep.training import trainer

    class Lone(trainer.Accelerator):
        def __init__(self, **options):
            with pytest.MonkeyPatch.context() as hidden:
                hidden.delenv("WORLD_SIZE")
                super().__init__(**options)

    monkeypatch.setattr(trainer, "Accelerator", Lone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    call = pipeline.train("cd", tmp_path)
    with pytest.raises(ValueError, match="2 processes started, but accelerate sees 1"):
        call()


@pytest.mark.parametrize("count", [2, 3])
def test_images_do_not_depend_on_processes(pipeline, tmp_path, monkeypatch, count):
    """More than one round, and a last one in which not every process has work."""
    from fewstep.evaluation import generation

    monkeypatch.setattr(generation, "CHUNK", 8)
    call = pipeline.sample("cd", "cm-2", tmp_path / "one")
    call()
    many = pipeline.sample("cd", "cm-2", tmp_path / "many")
    assert ranks(many, tmp_path, count=count, fault=small_chunks) == [0] * count, (
        tmp_path / "rank0.log"
    ).read_text()
    assert sha256(many.out) == sha256(call.out)


def small_chunks() -> None:
    from fewstep.evaluation import generation

    generation.CHUNK = 8
