"""A stopped or killed training, started again, ends in the same bits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from stages_children import child, ranks, signal_at_step
from stages_world import Call, World, alone

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256
from fewstep.state import STOPPED

METHODS = ["decm", "scm"]  # two updates a step; a module trained beside the network


@pytest.fixture(scope="module", params=METHODS)
def whole(request, world: World, tmp_path_factory) -> tuple[str, Call]:
    """A method and its uninterrupted training."""
    call = world.train(request.param, tmp_path_factory.mktemp(f"whole-{request.param}"))
    call()
    return request.param, call


def states(call: Call) -> list[str]:
    return sorted(path.name for path in call.out.parent.glob("state-*/step-*"))


def same(call: Call, other: Call) -> None:
    """Equal to the last bit: the file's weights and card, and the curve's text."""
    assert sha256(call.outputs[0]) == sha256(other.outputs[0])
    assert call.outputs[1].read_bytes() == other.outputs[1].read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on(world, whole, tmp_path, number):
    method, reference = whole
    call = world.train(method, tmp_path)
    status = child(call, tmp_path / "log", signal_at_step, step=3, number=number)
    assert status == STOPPED == 75, (tmp_path / "log").read_text()
    assert "state saved at step 4" in (tmp_path / "log").read_text()
    assert not any(path.exists() for path in call.outputs)
    assert states(call) == ["step-000000004"]
    call()
    same(call, reference)
    assert not list(tmp_path.glob("state-*"))


def test_killed_between_saved_states(world, whole, tmp_path):
    method, reference = whole
    call = world.train(method, tmp_path).more("--save-steps", "3")
    assert child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL) == -signal.SIGKILL
    assert not any(path.exists() for path in call.outputs)
    assert states(call) == ["step-000000003"]
    assert child(call, tmp_path / "log", signal_at_step, step=7, number=signal.SIGKILL) == -signal.SIGKILL
    assert states(call) == ["step-000000006"]
    call()
    same(call, reference)


def test_saving_changes_nothing(world, whole, tmp_path):
    method, reference = whole
    call = world.train(method, tmp_path).more("--save-steps", "1")
    call()
    same(call, reference)


def test_half_a_state_does_not_count(world, tmp_path):
    """A process killed while it saves leaves a .partial folder, which is not resumed from."""
    call = world.train("cd", tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL)
    state = next(tmp_path.glob("state-*"))
    (state / "step-000000006.partial").mkdir()
    (state / "step-000000006.partial" / "model.safetensors").write_bytes(b"half")
    with (state / "train.jsonl").open("a") as stream:
        stream.write('{"step": 3, "upd')
    call()
    same(call, world.train("cd"))


def test_a_changed_spec_starts_from_scratch(world, tmp_path):
    call = world.train("cd", tmp_path)
    child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM)
    changed = world.varied({"methods": {"cd": {"loss": {"clamp": 0.5}}}})
    changed.train("cd", tmp_path)()
    fresh = tmp_path / "fresh"
    changed.train("cd", fresh)()
    assert sha256(tmp_path / "model.safetensors") == sha256(fresh / "model.safetensors")
    assert sha256(fresh / "model.safetensors") != sha256(world.train("cd").out)
    assert states(call) == ["step-000000004"]  # the first spec's, still there if one goes back to it


def test_a_second_interrupt_does_not_wait(world, tmp_path):
    call = world.train("cd", tmp_path)

    def impatient(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fewstep.train.Trainer._step", impatient)
        call()
    assert not states(call)


def test_two_processes_stop_at_the_same_step(world, tmp_path):
    """The signal may reach one process long before the other."""
    plan = world.varied({"methods": {"cd": {"train": {"steps": 30}}}})
    call = plan.train("cd", tmp_path)
    assert ranks(call, tmp_path, fate=signal_at_step, step=12, number=signal.SIGUSR1) == [STOPPED, STOPPED]
    assert states(call) == ["step-000000020"]
    assert ranks(call, tmp_path) == [0, 0]
    whole = plan.train("cd", tmp_path / "whole")
    assert ranks(whole, tmp_path) == [0, 0]
    same(call, whole)


def test_stop_in_this_process_leaves_no_output(world, tmp_path):
    """The exit status reaches a caller of main, too."""
    call = world.train("cd", tmp_path)
    with alone():
        from fewstep.train import Trainer

        with pytest.MonkeyPatch.context() as patch:
            original = Trainer._step

            def step(self, now, *rest):
                if now == 2:
                    signal.raise_signal(signal.SIGTERM)
                return original(self, now, *rest)

            patch.setattr(Trainer, "_step", step)
            with pytest.raises(SystemExit) as stopped:
                call()
    assert stopped.value.code == STOPPED
    assert not call.out.exists()
    assert load_model(world.train("cd").out)  # the world is untouched


def test_state_is_beside_the_model_and_out_of_the_way(world, tmp_path: Path):
    call = world.train("cd", tmp_path)
    child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM)
    made = {path.name for path in tmp_path.iterdir()} - {"log"}
    assert {name.split("-")[0] for name in made if not name.endswith(".json")} == {"state", "tensorboard"}
