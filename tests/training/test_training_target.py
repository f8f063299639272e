"""A network that follows as a moving average: resumed, shared out, the same for any number of processes."""

from __future__ import annotations

import signal

import pytest
from child_processes import child, ranks, signal_at_step
from tiny_pipeline import TinyPipeline, alone
from trained_files import close, same, states

from fewstep.training.state import STOPPED

METHOD = "twinflow"  # its target network jumps, and its rows have roles
SHARDED = ("--shard", "fsdp2")


@pytest.fixture(scope="module")
def whole(pipeline: TinyPipeline, tmp_path_factory):
    call = pipeline.train(METHOD, tmp_path_factory.mktemp("whole-target"))
    call()
    return call


def test_killed_and_resumed(pipeline, whole, tmp_path):
    call = pipeline.train(METHOD, tmp_path).more("--save-steps", "3")
    assert child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL) == -signal.SIGKILL
    assert states(call) == ["step-000000003"]
    call()
    same(call, whole)


@pytest.mark.parametrize("rows", [32, 2])
def test_two_processes(pipeline, whole, tmp_path, rows):
    """Also where a slice holds no row of one of the roles."""
    call = pipeline.train(METHOD, tmp_path).more("--device-batch", str(rows))
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, whole)


def test_two_processes_that_share_the_weights(pipeline, whole, tmp_path):
    call = pipeline.train(METHOD, tmp_path).more(*SHARDED)
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, whole)


def test_a_role_without_rows_is_refused_where_weights_are_shared(pipeline, tmp_path):
    """The processes would call the network unequally often, and wait for each other."""
    call = pipeline.train(METHOD, tmp_path).more(*SHARDED, "--device-batch", "2")
    assert ranks(call, tmp_path) == [1, 1]
    told = (tmp_path / "rank0.log").read_text()
    assert "--shard fsdp2: 2 rows at once have no row for a share of 0.333333" in told
    assert "Traceback" not in told


def test_shared_weights_stop_and_go_on(pipeline, tmp_path):
    plan = pipeline.varied({"methods": {METHOD: {"train": {"steps": 13}}}})
    call = plan.train(METHOD, tmp_path).more(*SHARDED)
    stopped = ranks(call, tmp_path, fault=signal_at_step, step=8, number=signal.SIGUSR1)
    assert stopped == [STOPPED, STOPPED], (tmp_path / "rank0.log").read_text()
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    uninterrupted = plan.train(METHOD, tmp_path / "whole").more(*SHARDED)
    assert ranks(uninterrupted, tmp_path) == [0, 0]
    same(call, uninterrupted)


def trained(call, monkeypatch) -> list:
    """The trainer after its run, and what its losses were given."""
    from fewstep.training.trainer import Trainer

    seen = []

    def mean(self, values):
        seen.append((self, self._context(0, slice(0, 2), {})))
        return original(self, values)

    original = Trainer._mean
    with monkeypatch.context() as patch, alone():
        patch.setattr(Trainer, "_mean", mean)
        call()
    return seen[-1]


def test_who_has_a_target(pipeline, tmp_path, monkeypatch):
    """It starts as the network, follows it, is not the model, and takes no gradient."""
    trainer, context = trained(pipeline.train(METHOD, tmp_path / "with"), monkeypatch)
    net, target = trainer.net.state_dict(), context.target.state_dict()
    assert net.keys() == target.keys()
    gaps = [float((net[name] - target[name]).abs().max()) for name in net]
    assert 0 < max(gaps) < 0.1
    assert not any(weight.requires_grad for weight in context.target.parameters())
    assert context.teacher_net is not None
    trainer, context = trained(pipeline.train("cd", tmp_path / "without"), monkeypatch)
    assert context.target is None and len(trainer.averages) == 1
