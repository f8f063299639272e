"""The trainer's refusals, its logs, and the arithmetic of rates and batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_pipeline import TinyPipeline, refused, replaced
from trained_files import same

from fewstep import train
from fewstep.backbones.model_file import load_model, save_model
from fewstep.common.device_time import read_time
from fewstep.common.files import read_lines, sha256
from fewstep.config import ConfigError
from fewstep.config.objectives import LossParams
from fewstep.config.settings import Optimizer
from fewstep.data.loader import split_batch
from fewstep.methods.contrast.params import ContrastParams
from fewstep.methods.decm.params import DECMParams
from fewstep.training.optimizer import learning_rate
from fewstep.training.trainer import Options


def test_refuses_latents_of_another_tokenizer(pipeline: TinyPipeline, tmp_path):
    call = replaced(
        pipeline.train("cd", tmp_path), "--latents", pipeline.plan.file("manifest", latents="digits-pixels")
    )
    refused(call, "digits-pixels", "shape", "[1, 8, 8]", "[4, 4, 4]", "tokenizer.kind")


def test_refuses_latents_with_another_normalisation(pipeline, tmp_path):
    changed = {"settings": {"tokenizers": {"digits-ae": {"multiplier": 0.5}}}}
    refused(pipeline.varied(changed).train("cd", tmp_path), "tokenizer.multiplier", "1.0", "0.5")


def test_refuses_to_go_without_its_teacher(pipeline, tmp_path):
    refused(replaced(pipeline.train("cd", tmp_path), "--teacher"), "needs --teacher with one model file")


def test_refuses_a_teacher_of_another_width(pipeline, tmp_path):
    wide = {"settings": {"backbones": {"lightningdit-digits": {"width": 24, "heads": 2}}}}
    refused(pipeline.varied(wide).train("cd", tmp_path), "does not fit the backbone", "shape of")


def test_refuses_a_network_of_another_kind_as_teacher(pipeline, tmp_path):
    call = replaced(pipeline.train("cd", tmp_path), "--teacher", pipeline.plan.model("digits-classifier"))
    refused(call, "does not fit the backbone", "missing", "unexpected")


def test_refuses_weights_without_a_card(pipeline, tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "bare.safetensors")
    call = replaced(pipeline.train("cd", tmp_path), "--teacher", str(tmp_path / "bare.safetensors"))
    refused(call, "bare.safetensors", "no card")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("shape", [4, 8, 8], ["[4, 8, 8]", "[4, 4, 4]"]), ("classes", 9, ["9", "digits-latents have 10"])],
)
def test_the_plan_refuses_a_network_for_other_data(pipeline, key, value, words):
    """Before any job, rather than by a shape error in the first step."""
    with pytest.raises(ConfigError) as error:
        pipeline.varied({"settings": {"backbones": {"lightningdit-digits": {key: value}}}})
    for word in [f"overrides.settings.backbones.lightningdit-digits.{key}", *words]:
        assert word in str(error.value)


def test_the_student_starts_as_its_teacher(pipeline, tmp_path):
    """With a vanishing rate the weights that both have are the teacher's."""
    still = {"methods": {"cd": {"train": {"steps": 3, "optimizer": {"lr": 1e-12}}}}}
    call = pipeline.varied(still).train("cd", tmp_path)
    call()
    student, teacher = load_model(call.out)[0], load_model(pipeline.plan.model("teacher"))[0]
    assert teacher.keys() < student.keys()
    for name, tensor in teacher.items():
        torch.testing.assert_close(student[name], tensor, rtol=0, atol=1e-9)


def test_curve_columns(pipeline, tmp_path):
    call = pipeline.train("decm", tmp_path)
    call()
    lines = [json.loads(line) for line in read_lines(call.outputs[1])]
    # the second update comes at every third step
    assert [(line["step"], line["update"]) for line in lines if line["update"]] == [(0, 1), (3, 1), (6, 1)]
    assert [line["step"] for line in lines if not line["update"]] == list(range(8))
    for line in lines:
        assert {"step", "update", "loss", "grad_norm", "lr"} < line.keys()
        assert all(math.isfinite(value) for value in line.values())
    assert {"loss_cm", "loss_fm"} < lines[0].keys()
    assert {"loss_n2n", "loss_fm"} < lines[1].keys()


def test_tensorboard_reads_the_events(pipeline, tmp_path):
    call = pipeline.train("decm", tmp_path)
    call()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"update0/loss", "update0/grad_norm", "update0/lr", "update1/loss_n2n"} <= tags
    lines = [json.loads(line) for line in read_lines(call.outputs[1])]
    expected = {line["step"]: line["loss"] for line in lines if line["update"] == 0}
    found = {event.step: event.value for event in events.Scalars("update0/loss")}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_training_that_nothing_follows(pipeline, tmp_path):
    """A tracker changes no result, and events of an earlier training do not stay beside the new one."""
    followed = pipeline.train("cd", tmp_path)
    followed()
    before = sha256(followed.out)
    call = followed.more("--tracker", "none")
    call()
    assert sha256(call.out) == before
    assert not (tmp_path / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_is_refused(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(pipeline.train("cd", tmp_path).more("--tracker", "wandb"), "--tracker wandb", "pip install wandb")


@pytest.fixture
def short_memory(monkeypatch):
    """A call that trains where at most ``fitting`` rows fit, and the rows of every start of the training."""

    def call(
        fitting: int, device_batch: int | None = None, loss: LossParams | None = None
    ) -> list[int | None]:
        started: list[int | None] = []

        class Short:
            def __init__(self, spec, options):
                self.rows = options.device_batch

            def run(self):
                started.append(self.rows)
                if (self.rows or 128) > fitting:
                    raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore")

        monkeypatch.setattr(train, "Trainer", Short)
        monkeypatch.setattr(train, "_train", Short.run)
        latents, steps = SimpleNamespace(shape=[32, 16, 16]), SimpleNamespace(global_batch_size=1024)
        options = Options(*map(Path, ["latents", "teacher", "out", "curve"]), device_batch=device_batch)
        spec = SimpleNamespace(latents=latents, train=steps, loss=loss or DECMParams())
        train.train_in_memory(spec, options, Path("spec.json"))
        return started

    return call


def test_fewer_rows_where_the_memory_is_short(short_memory, capsys):
    assert short_memory(200) == [None]
    assert short_memory(20) == [None, 64, 32, 16]
    told = capsys.readouterr().out.splitlines()
    assert (
        told[0] == "spec.json: 64 rows at a time, as more do not fit into the GPU's memory" and len(told) == 3
    )


def test_memory_that_did_not_suffice_is_not_recorded(short_memory, tmp_path, monkeypatch):
    """Of each start it is measured anew, and one that failed has none."""
    reset: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: reset.append(True))
    assert short_memory(32) == [None, 64, 32] and reset == [True, True]
    monkeypatch.undo()

    def fail() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True, num_processes=1),
        device=torch.device("cpu"),
        began=0.0,
        options=SimpleNamespace(out=tmp_path / "model"),
        state=SimpleNamespace(folder=Path("state")),
        run=fail,
    )
    with pytest.raises(torch.cuda.OutOfMemoryError):
        train._train(trainer)
    trainer.run = lambda: None
    train._train(trainer)
    time = read_time(tmp_path / "time.json")
    assert time is not None and [part.memory > 0 for part in time.parts] == [False, True]


def test_rows_that_are_given_are_not_changed(short_memory, monkeypatch):
    with pytest.raises(
        ValueError, match=r"spec\.json: the GPU's memory .* \(CUDA out of memory\.\); give a sm"
    ):
        short_memory(20, device_batch=32)
    with pytest.raises(ValueError, match="--device-batch"):
        short_memory(0)
    with pytest.raises(ValueError, match="memory does not suffice"):  # its loss treats 64 rows together
        short_memory(32, loss=ContrastParams())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--shard fsdp2"):
        short_memory(20)


def test_log_every(pipeline, tmp_path):
    call = pipeline.varied({"methods": {"cd": {"train": {"log_every": 3}}}}).train("cd", tmp_path)
    call()
    lines = [json.loads(line) for line in read_lines(call.outputs[1])]
    assert [line["step"] for line in lines] == [0, 3, 6]


def test_card(pipeline):
    card = load_model(pipeline.train("cd").out)[1]
    assert card["status"] == "trained"
    assert (card["method"], card["variant"], card["seed"], card["steps"]) == ("cd", "base", 0, 8)
    assert card["skipped_updates"] == 0
    assert card["guidance_eta"] > 0
    teacher = load_model(pipeline.train("teacher").out)[1]
    assert teacher["guidance_eta"] is None
    # A tangent, its teacher and the backward, against one forward and backward.
    assert card["flops_per_step"] > 1.5 * teacher["flops_per_step"] > 0


@pytest.mark.parametrize("method", ["cd", "decm", "facm", "meanflow", "scm"])
def test_bf16(pipeline, tmp_path, method):
    changed = {"methods": {method: {"train": {"steps": 6, "precision": "bf16", "optimizer": {"warmup": 1}}}}}
    call = pipeline.varied(changed).train(method, tmp_path)
    call()
    tensors, card = load_model(call.out)
    assert card["skipped_updates"] == 0
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    first = json.loads(call.outputs[1].read_text().splitlines()[0])
    plain = pipeline.varied({"methods": {method: {"train": {"steps": 6}}}}).train(method, tmp_path / "plain")
    plain()
    expected = json.loads(plain.outputs[1].read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(expected["loss"], rel=0.1, abs=0.01)
    assert first["loss"] != expected["loss"], "bf16 was not used"


def test_fp16_is_refused_on_a_cpu(pipeline, tmp_path):
    """Accelerate would train in float32."""
    half = pipeline.varied({"methods": {"cd": {"train": {"precision": "fp16"}}}})
    refused(half.train("cd", tmp_path), "precision fp16", "would train in float32 on a CPU")


def test_the_environment_changes_nothing(pipeline, tmp_path, monkeypatch):
    for name, value in {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "eager",
    }.items():
        monkeypatch.setenv(name, value)
    call = pipeline.train("cd", tmp_path)
    call()
    same(call, pipeline.train("cd"))


def test_another_seed_is_another_training(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path, seed=1)
    call()
    ours, theirs = load_model(call.out)[0], load_model(pipeline.train("cd").out)[0]
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("batch", "processes", "most"), [(32, 1, 128), (32, 2, 8), (24, 2, 5), (7, 1, 3), (6, 6, 1)]
)
def test_split_batch_covers_every_row_once(batch, processes, most):
    slices = [split_batch(batch, processes, rank, most) for rank in range(processes)]
    rows = [row for each in slices for part in each for row in range(batch)[part]]
    assert sorted(rows) == list(range(batch)) == rows
    sizes = {part.stop - part.start for each in slices for part in each}
    assert len(sizes) == 1 and sizes.pop() <= most
    assert len({len(each) for each in slices}) == 1


def test_split_batch_takes_as_many_rows_at_once_as_it_can():
    assert split_batch(1024, 8, 1, 128) == [slice(128, 256)]
    assert split_batch(1024, 4, 0, 128) == [slice(0, 128), slice(128, 256)]


@pytest.mark.parametrize(("processes", "most"), [(1, 128), (2, 7), (3, 4), (1, 10)])
def test_split_batch_keeps_groups_together(processes, most):
    slices = [split_batch(48, processes, rank, most, group=4) for rank in range(processes)]
    rows = [row for each in slices for part in each for row in range(48)[part]]
    assert rows == list(range(48))
    assert all(part.start % 4 == part.stop % 4 == 0 and part.stop - part.start <= most for part in slices[0])


def test_split_batch_refuses_to_cut_groups():
    with pytest.raises(ValueError, match=r"24 does not divide among 4 processes into groups of 4 rows"):
        split_batch(24, 4, 0, 128, group=4)
    with pytest.raises(ValueError, match=r"--device-batch 3: below the 4 rows"):
        split_batch(24, 2, 0, 3, group=4)


def test_split_batch_refuses():
    with pytest.raises(ValueError, match=r"train\.global_batch_size: 33 does not divide among 2 processes"):
        split_batch(33, 2, 0, 128)


def test_learning_rate():
    options = Optimizer(lr=1.0, warmup=4, decay="cosine", final_lr_ratio=0.1)
    rates = [learning_rate(options, step, 24) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.55)
    assert rates[24] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = Optimizer(lr=2.0, warmup=0)
    assert [learning_rate(constant, step, 3) for step in range(3)] == [2.0] * 3


def test_rates_in_the_curve(pipeline, tmp_path):
    lines = [json.loads(line) for line in read_lines(pipeline.train("cd").outputs[1])]
    options = pipeline.plan.run("cd").train.optimizer
    assert [line["lr"] for line in lines] == [learning_rate(options, step, 8) for step in range(8)]


def test_save_model_is_readable_by_anyone(pipeline, tmp_path):
    """Temporary files are private; what they become is not."""
    tensors, card = load_model(pipeline.train("cd").out)
    save_model(tmp_path / "m.safetensors", tensors, pipeline.plan.run("cd").backbone, card)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o444 == 0o444
