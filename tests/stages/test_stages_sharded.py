"""Weights shared out between processes, blocks recomputed: the same training in less memory."""

from __future__ import annotations

import json
import re
import signal
import sys

import pytest
from stages_children import ranks, signal_at_step
from stages_world import World
from test_stages_processes import close
from test_stages_resume import same, states

from fewstep.backbones.model_file import load_card
from fewstep.common.files import sha256
from fewstep.core.wrappers import held
from fewstep.state import STOPPED

SHARDED = ("--shard", "fsdp2")


def counted() -> None:
    """The process prints the sizes of what it holds, and of what it would hold unsharded."""
    from fewstep.train import Trainer

    original = Trainer._step

    def step(self, *rest):
        result = original(self, *rest)
        if self.progress.step == 7:
            weights = [weight for module in self.modules for weight in module.parameters()]
            moments = [v for state in self.optimizer.state.values() for v in state.values() if v.ndim]
            sizes = {
                name: [sum(held(tensor).numel() for tensor in each), sum(tensor.numel() for tensor in each)]
                for name, each in {
                    "weights": weights,
                    "moments": moments,
                    "average": [self.ema.tensors()[name] for name, _ in self.net.named_parameters()],
                }.items()
            }
            print(f"held {json.dumps(sizes)}", file=sys.stderr, flush=True)
        return result

    Trainer._step = step


@pytest.fixture(scope="module", params=["decm", "scm"])
def sharded(request, world: World, tmp_path_factory):
    """A method, its training by two processes that share the weights out, and the call's folder."""
    folder = tmp_path_factory.mktemp(f"sharded-{request.param}")
    call = world.train(request.param, folder).more(*SHARDED)
    assert ranks(call, folder, fate=counted) == [0, 0], (folder / "rank0.log").read_text()
    return request.param, call, folder


def test_two_processes_that_share_the_weights(world, sharded, tmp_path):
    method, call, _ = sharded
    alone = world.train(method, tmp_path)
    alone()
    close(call, alone)
    found = load_card(call.out)["self_test"]
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


def test_they_accumulate(world, sharded, tmp_path):
    method, call, _ = sharded
    other = world.train(method, tmp_path).more(*SHARDED, "--device-batch", "8")
    assert ranks(other, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(other, call)


def test_they_stop_and_go_on(world, tmp_path):
    """In the same bits, with the same options; with others one line says so."""
    plan = world.varied({"methods": {"scm": {"train": {"steps": 13}}}})
    call = plan.train("scm", tmp_path).more(*SHARDED)
    stopped = ranks(call, tmp_path, fate=signal_at_step, step=8, number=signal.SIGUSR1)
    assert stopped == [STOPPED, STOPPED], (tmp_path / "rank0.log").read_text()
    assert states(call) == ["step-000000010"]
    with pytest.raises(ValueError, match=r"was saved with --shard fsdp2 and 2 processes; go on with these"):
        call()
    assert ranks(call, tmp_path) == [0, 0]
    uninterrupted = plan.train("scm", tmp_path / "whole").more(*SHARDED)
    assert ranks(uninterrupted, tmp_path) == [0, 0]
    same(call, uninterrupted)
    assert not list(tmp_path.glob("state-*"))


def test_a_state_of_one_process_is_not_shared_out(world, tmp_path):
    plan = world.varied({"methods": {"cd": {"train": {"steps": 13}}}})
    plain = plan.train("cd", tmp_path)
    assert ranks(plain, tmp_path, fate=signal_at_step, step=8, number=signal.SIGUSR1) == [STOPPED] * 2
    assert ranks(plain.more(*SHARDED), tmp_path) == [1, 1]
    assert "was saved with --shard none; go on with these" in (tmp_path / "rank1.log").read_text()


def test_one_process_has_nothing_to_share(world, tmp_path):
    call = world.train("cd", tmp_path).more(*SHARDED)
    call()
    assert sha256(call.out) == sha256(world.train("cd").out)


@pytest.mark.parametrize("method", ["decm", "digits-classifier"])
def test_recomputed_blocks_change_no_bit(world, tmp_path, method):
    """Nor does the option where there are no blocks."""
    plain = world.train(method, tmp_path / "plain")
    call = world.train(method, tmp_path).more("--checkpoint-blocks")
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
def test_refusals_are_told_before_anything_else(world, tmp_path, options, reason):
    call = world.train("cd", tmp_path).more(*options)
    assert ranks(call, tmp_path) == [1, 1]
    text = (tmp_path / "rank0.log").read_text()
    assert reason in text and "Traceback" not in text


def test_compiled_blocks_train_alike(world, tmp_path):
    """Student and teacher, in two processes that share the weights out and recompute blocks."""
    plain = world.train("decm", tmp_path / "plain")
    plain()
    call = world.train("decm", tmp_path).more(*SHARDED, "--checkpoint-blocks", "--compile-blocks", "eager")
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, plain)
