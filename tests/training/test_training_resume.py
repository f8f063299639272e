"""A stopped or killed training, started again, ends in the same bits."""

from __future__ import annotations

import math
import pickle
import shutil
import signal
from pathlib import Path

import pytest
from child_processes import child, disk_full_at_step, ranks, signal_at_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pipeline import Call, TinyPipeline, alone, replaced
from trained_files import same, states

from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.files import sha256
from fewstep.methods.cd.loss import CD
from fewstep.training.state import STOPPED
from fewstep.training.trainer import Trainer

METHODS = ["decm", "scm"]  # two updates a step; a module trained beside the network


@pytest.fixture(scope="module", params=METHODS)
def whole(request, pipeline: TinyPipeline, tmp_path_factory) -> tuple[str, Call]:
    """A method and its uninterrupted training."""
    call = pipeline.train(request.param, tmp_path_factory.mktemp(f"whole-{request.param}"))
    call()
    return request.param, call


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_next_start_goes_on(pipeline, whole, tmp_path, number):
    method, reference = whole
    call = pipeline.train(method, tmp_path)
    status = child(call, tmp_path / "log", signal_at_step, step=3, number=number)
    assert status == STOPPED == 75, (tmp_path / "log").read_text()
    assert "state saved at step 4" in (tmp_path / "log").read_text()
    assert not any(path.exists() for path in call.outputs)
    assert states(call) == ["step-000000004"]
    call()
    same(call, reference)
    assert not list(tmp_path.glob("state-*"))


def test_killed_between_saved_states(pipeline, whole, tmp_path):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "3")
    assert child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL) == -signal.SIGKILL
    assert not any(path.exists() for path in call.outputs)
    assert states(call) == ["step-000000003"]
    assert child(call, tmp_path / "log", signal_at_step, step=7, number=signal.SIGKILL) == -signal.SIGKILL
    assert states(call) == ["step-000000003", "step-000000006"]
    call()
    same(call, reference)


def test_saving_changes_nothing(pipeline, whole, tmp_path):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "1")
    call()
    same(call, reference)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("model-*"))


def test_kept_checkpoints_are_models(pipeline, whole, tmp_path):
    """Each is the average at its step, in a file like the last one; those of an earlier training go."""
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--keep-every", "2")
    call()
    same(call, reference)
    assert kept(tmp_path) == [f"model-{step}.safetensors" for step in (2, 4, 6)]
    found = [load_model(tmp_path / name) for name in kept(tmp_path)]
    final, card = load_model(call.out)
    assert [other["step"] for _, other in found] == [2, 4, 6]
    assert all(other["spec"] == card["spec"] and other["steps"] == card["steps"] for _, other in found)
    for tensors, _ in found:
        assert tensors.keys() == final.keys()
        assert any(not tensors[name].equal(final[name]) for name in final)
    call.more("--keep-every", "5")()
    assert kept(tmp_path) == ["model-5.safetensors"], "those of an earlier training are removed"


def test_a_resumed_training_keeps_no_checkpoint_twice(pipeline, whole, tmp_path):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "3", "--keep-every", "2")
    child(call, tmp_path / "log", signal_at_step, step=5, number=signal.SIGKILL)
    assert kept(tmp_path) == ["model-2.safetensors", "model-4.safetensors"]
    written = {name: (tmp_path / name).stat().st_mtime_ns for name in kept(tmp_path)}
    call()
    same(call, reference)
    assert kept(tmp_path) == [f"model-{step}.safetensors" for step in (2, 4, 6)]
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in written} == written


def test_half_a_state_does_not_count(pipeline, tmp_path):
    """A process killed while it saves leaves a .partial folder, which is not resumed from."""
    call = pipeline.train("cd", tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL)
    state = next(tmp_path.glob("state-*"))
    (state / "step-000000006.partial").mkdir()
    (state / "step-000000006.partial" / "model.safetensors").write_bytes(b"half")
    with (state / "train.jsonl").open("a") as stream:
        stream.write('{"step": 3, "upd')
    call()
    same(call, pipeline.train("cd"))


def test_a_changed_spec_starts_from_scratch(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path)
    child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM)
    changed = pipeline.varied({"methods": {"cd": {"loss": {"clamp": 0.5}}}})
    changed.train("cd", tmp_path)()
    fresh = tmp_path / "fresh"
    changed.train("cd", fresh)()
    assert sha256(tmp_path / "model.safetensors") == sha256(fresh / "model.safetensors")
    assert sha256(fresh / "model.safetensors") != sha256(pipeline.train("cd").out)
    assert not states(call)


def other_teacher(pipeline, folder: Path) -> Path:
    tensors, card = load_model(pipeline.plan.model("teacher"))
    backbone = pipeline.plan.run("teacher").backbone
    name = next(iter(tensors))
    save_model(folder / "teacher.safetensors", tensors | {name: tensors[name] + 1e-3}, backbone, card)
    return folder / "teacher.safetensors"


def test_a_state_belongs_to_its_teacher(pipeline, tmp_path, capfd):
    call = pipeline.train("cd", tmp_path)
    child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM)
    (saved,) = tmp_path.glob("state-*")
    teacher = str(other_teacher(pipeline, tmp_path))
    call = replaced(call, "--teacher", teacher)
    call()
    assert f"{saved}: saved state of another teacher discarded" in capfd.readouterr().out
    assert not saved.exists()
    fresh = replaced(pipeline.train("cd", tmp_path / "fresh"), "--teacher", teacher)
    fresh()
    same(call, fresh)


@pytest.mark.parametrize("changed", ["latents", "training code"])
def test_a_state_belongs_to_latents_and_code(pipeline, tmp_path, capfd, monkeypatch, changed):
    call = pipeline.train("cd", tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL)
    if changed == "latents":
        manifest = Path(pipeline.plan.file("manifest", latents="digits-latents"))
        folder = Path(shutil.copytree(manifest.parent, tmp_path / "latents"))
        (folder / manifest.name).write_text(manifest.read_text() + "\n")
        call = replaced(call, "--latents", str(folder / manifest.name))
    else:
        monkeypatch.setattr("fewstep.training.trainer.training_digest", lambda *_: "0" * 16)
    call()
    out = capfd.readouterr().out
    assert f"saved state of another {changed} discarded" in out and "resumed" not in out


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_state_falls_back_to_the_one_before(pipeline, whole, tmp_path, capfd, harm):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "2")
    child(call, tmp_path / "log", signal_at_step, step=7, number=signal.SIGKILL)
    assert states(call) == ["step-000000004", "step-000000006"]
    (file,) = tmp_path.glob("state-*/step-000000006/*.safetensors")
    harm(file)
    call()
    out = capfd.readouterr().out
    assert f"{file}: " in out and "is damaged" in out and "resumed at step 4 of 8" in out
    same(call, reference)


def test_no_good_state_starts_from_nothing(pipeline, whole, tmp_path, capfd):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=7, number=signal.SIGKILL)
    for record in tmp_path.glob("state-*/step-*/state.json"):
        record.write_text("{")
    call()
    out = capfd.readouterr().out
    assert out.count("is damaged") == 2 and "resumed" not in out
    same(call, reference)


def test_a_state_holds_no_pickle_and_a_planted_one_is_not_read(pipeline, whole, tmp_path):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL)
    (state,) = tmp_path.glob("state-*/step-000000003")
    assert {path.suffix for path in state.iterdir()} == {".safetensors", ".json"}

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "exploded",)

    for name in (".metadata", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        (state / name).write_bytes(pickle.dumps(Bomb()))
    call()
    assert not (tmp_path / "exploded").exists()
    same(call, reference)


def test_nothing_was_updated_before_the_state_was_saved(pipeline, tmp_path, monkeypatch):
    """A state without moments: every update until then was skipped."""
    original, update = CD.loss, Trainer._update

    def loss(self, net, batch, ctx):
        output = original(self, net, batch, ctx)
        return type(output)(output.loss * math.nan, output.logs) if ctx.step < 2 else output

    def stopping(self, *given):
        if self.progress.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return update(self, *given)

    monkeypatch.setattr(CD, "loss", loss)
    call, reference = pipeline.train("cd", tmp_path), pipeline.train("cd", tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "_update", stopping)
        call()
    call()
    reference()
    same(call, reference)


def test_a_full_disk_is_told_and_the_state_before_it_remains(pipeline, whole, tmp_path):
    method, reference = whole
    call = pipeline.train(method, tmp_path).more("--save-steps", "3")
    assert child(call, tmp_path / "log", disk_full_at_step, step=4) == 1
    error = (tmp_path / "log").read_text().splitlines()[-1]
    (partial,) = tmp_path.glob("state-*/step-000000006.partial")
    assert f"error: {partial}: process 0: " in error and "File too large" in error
    assert states(call) == ["step-000000003", partial.name]
    call()
    same(call, reference)


def test_tensorboard_shows_each_step_once(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path).more("--save-steps", "3")
    child(call, tmp_path / "log", signal_at_step, step=4, number=signal.SIGKILL)
    # TensorBoard reads files in the order of the second in their names, which both may share here.
    (first,) = (tmp_path / "tensorboard").iterdir()
    first.rename(first.with_name(f"events.out.tfevents.1000000000.{first.name.partition('tfevents.')[2]}"))
    call()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("update0/loss")] == list(range(8))


def test_a_second_interrupt_does_not_wait(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path)

    def impatient(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("fewstep.training.trainer.Trainer._update", impatient)
        call()
    assert not states(call)


def test_two_processes_stop_at_the_same_step(pipeline, tmp_path):
    """The signal may reach one process long before the other."""
    plan = pipeline.varied({"methods": {"cd": {"train": {"steps": 30}}}})
    call = plan.train("cd", tmp_path)
    assert ranks(call, tmp_path, fault=signal_at_step, step=12, number=signal.SIGUSR1) == [STOPPED, STOPPED]
    assert states(call) == ["step-000000020"]
    assert ranks(call, tmp_path) == [0, 0]
    whole = plan.train("cd", tmp_path / "whole")
    assert ranks(whole, tmp_path) == [0, 0]
    same(call, whole)


def test_stop_in_this_process_leaves_no_output(pipeline, tmp_path):
    """The exit status reaches a caller of main, too."""
    call = pipeline.train("cd", tmp_path)
    with alone(), pytest.MonkeyPatch.context() as patch:
        original = Trainer._update

        def update(self, *given):
            if self.progress.step == 2:
                signal.raise_signal(signal.SIGTERM)
            return original(self, *given)

        patch.setattr(Trainer, "_update", update)
        with pytest.raises(SystemExit) as stopped:
            call()
    assert stopped.value.code == STOPPED
    assert not call.out.exists()


def test_state_is_beside_the_model_and_out_of_the_way(pipeline, tmp_path: Path):
    call = pipeline.train("cd", tmp_path)
    child(call, tmp_path / "log", signal_at_step, step=3, number=signal.SIGTERM)
    made = {path.name for path in tmp_path.iterdir()} - {"log"}
    assert {name.split("-")[0] for name in made if not name.endswith(".json")} == {"state", "tensorboard"}
