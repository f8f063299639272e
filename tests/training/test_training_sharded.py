"""Weights shared out between processes, blocks recomputed: the same training in less memory."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys

import pytest
from child_processes import ranks, signal_at_step
from tiny_pipeline import TinyPipeline
from trained_files import close, same, states

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256
from fewstep.training.parallel import local_tensor
from fewstep.training.state import STOPPED

SHARDED = ("--shard", "fsdp2")


def counted() -> None:
    """The process prints the sizes of what it holds, and of what it would hold unsharded."""
    from fewstep.training.trainer import Trainer

    original = Trainer._mean

    def mean(self, values):
        if self.progress.step == 7:
            moments = [v for state in self.student.optimizer.state.values() for v in state.values() if v.ndim]
            tensors = {
                "weights": self.student.weights,
                "moments": moments,
                "average": [self.ema.tensors()[name] for name, _ in self.net.named_parameters()],
            }
            sizes = {
                name: [sum(local_tensor(one).numel() for one in each), sum(one.numel() for one in each)]
                for name, each in tensors.items()
            }
            print(f"held {json.dumps(sizes)}", file=sys.stderr, flush=True)
        return original(self, values)

    Trainer._mean = mean


@pytest.fixture(scope="module", params=["decm", "scm"])
def sharded(request, pipeline: TinyPipeline, tmp_path_factory):
    """A method, its training by two processes that share the weights out, and the call's folder."""
    folder = tmp_path_factory.mktemp(f"sharded-{request.param}")
    call = pipeline.train(request.param, folder).more(*SHARDED)
    assert ranks(call, folder, fault=counted) == [0, 0], (folder / "rank0.log").read_text()
    return request.param, call, folder


def test_two_processes_that_share_the_weights(pipeline, sharded, tmp_path):
    method, call, _ = sharded
    alone = pipeline.train(method, tmp_path)
    alone()
    close(call, alone)
    found = load_model(call.out)[1]["self_test"]
    assert found["loss_finite"] and found["gradient_spread"] is None and found["tangent_error"] < 1e-2


def test_each_holds_half(sharded):
    _, _, folder = sharded
    sizes = []
    for rank in (0, 1):
        lines = (folder / f"rank{rank}.log").read_text().splitlines()
        sizes.append(json.loads(next(line for line in lines if "held {" in line).partition("held ")[2]))
    for name in ("weights", "moments", "average"):
        total = sizes[0][name][1]
        assert sizes[0][name][0] + sizes[1][name][0] == total == sizes[1][name][1]
        for rank in (0, 1):
            assert sizes[rank][name][0] == pytest.approx(total / 2, rel=0.1)


def test_it_ends_with_the_peak_memory_of_each(sharded):
    _, _, folder = sharded
    logs = [(folder / f"rank{rank}.log").read_text() for rank in (0, 1)]
    found = [re.search(r"peak memory of each process: (\d+) (\d+) MiB", log) for log in logs]
    assert found[1] is None and found[0] is not None
    assert all(50 < int(peak) < 50_000 for peak in found[0].groups())


def test_they_accumulate(pipeline, sharded, tmp_path):
    method, call, _ = sharded
    other = pipeline.train(method, tmp_path).more(*SHARDED, "--device-batch", "8")
    assert ranks(other, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(other, call)


def test_they_stop_and_go_on(pipeline, tmp_path):
    """In the same bits, in the same layout on the same number of processes."""
    plan = pipeline.varied({"methods": {"scm": {"train": {"steps": 13}}}})
    call = plan.train("scm", tmp_path).more(*SHARDED)
    stopped = ranks(call, tmp_path, fault=signal_at_step, step=8, number=signal.SIGUSR1)
    assert stopped == [STOPPED, STOPPED], (tmp_path / "rank0.log").read_text()
    assert states(call) == ["step-000000010"]
    assert ranks(call, tmp_path) == [0, 0]
    uninterrupted = plan.train("scm", tmp_path / "whole").more(*SHARDED)
    assert ranks(uninterrupted, tmp_path) == [0, 0]
    same(call, uninterrupted)
    assert not list(tmp_path.glob("state-*"))


THIRTEEN = {"methods": {"scm": {"train": {"steps": 13, "global_batch_size": 36}}}}
LAYOUTS = {"one": (1, ()), "ddp on 2": (2, ()), "fsdp2 on 2": (2, SHARDED), "fsdp2 on 3": (3, SHARDED)}


@pytest.fixture(scope="module", params=LAYOUTS)
def stopped_in_a_layout(request, pipeline, tmp_path_factory):
    """A training that stopped at step 10 of 13, and the same uninterrupted in one process."""
    folder = tmp_path_factory.mktemp("stopped")
    plan = pipeline.varied(THIRTEEN)
    count, options = LAYOUTS[request.param]
    call = plan.train("scm", folder).more(*options)
    fault = {"fault": signal_at_step, "step": 9, "number": signal.SIGUSR1}
    assert ranks(call, folder, count, **fault) == [STOPPED] * count, (folder / "rank0.log").read_text()
    alone = plan.train("scm", folder / "alone")
    alone()
    return request.param, folder, alone


@pytest.mark.parametrize("layout", LAYOUTS)
def test_another_layout_and_number_of_processes_go_on(pipeline, stopped_in_a_layout, tmp_path, layout):
    saved_in, folder, alone = stopped_in_a_layout
    for state in folder.glob("state-*"):
        shutil.copytree(state, tmp_path / state.name)
    count, options = LAYOUTS[layout]
    call = pipeline.varied(THIRTEEN).train("scm", tmp_path).more(*options)
    assert states(call) == ["step-000000010"]
    assert ranks(call, tmp_path, count) == [0] * count, (tmp_path / "rank0.log").read_text()
    assert "resumed at step 10 of 13" in (tmp_path / "rank0.log").read_text()
    close(call, alone)
    if saved_in == layout == "one":
        same(call, alone)


def test_one_process_has_nothing_to_share(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path).more(*SHARDED)
    call()
    assert sha256(call.out) == sha256(pipeline.train("cd").out)


@pytest.mark.parametrize("method", ["decm", "digits-classifier"])
def test_recomputed_blocks_change_no_bit(pipeline, tmp_path, method):
    """Nor does the option where there are no blocks."""
    plain = pipeline.train(method, tmp_path / "plain")
    call = pipeline.train(method, tmp_path).more("--checkpoint-blocks")
    plain()
    call()
    same(call, plain)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tangent", "functorch", *SHARDED), "forward mode fails in FSDP2's hooks"),
        (("--tangent", "functorch"), "no gradient would be reduced"),
        (("--tangent", "split", "--compile-blocks", "eager"), "does not go through a compiled block"),
    ],
)
def test_refusals_are_told_before_anything_else(pipeline, tmp_path, options, reason):
    call = pipeline.train("cd", tmp_path).more(*options)
    assert ranks(call, tmp_path) == [1, 1]
    text = (tmp_path / "rank0.log").read_text()
    assert reason in text and "Traceback" not in text


def test_compiled_blocks_train_alike(pipeline, tmp_path):
    """Student and teacher, in two processes that share the weights out and recompute blocks."""
    plain = pipeline.train("decm", tmp_path / "plain")
    plain()
    call = pipeline.train("decm", tmp_path).more(*SHARDED, "--checkpoint-blocks", "--compile-blocks", "eager")
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, plain)
