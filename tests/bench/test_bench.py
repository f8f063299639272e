"""Benchmarks: what they count, measure and write. Times are anybody's."""

from __future__ import annotations

import argparse
import csv
import signal
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from configs import make_plan, raw_config
from tiny_pipeline import alone

from fewstep.backbones import build
from fewstep.bench import gpu, meters, partial_of, throughput, train_step
from fewstep.bench.__main__ import main
from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.backbones import LightningDiT
from fewstep.config.base import merge
from fewstep.config.rates import Blocks, Formulation
from fewstep.config.specs import BenchSpec
from fewstep.core.capture import WARM_UP
from fewstep.core.jvp import FORMULATIONS
from fewstep.core.operations import OperationCounter
from fewstep.core.rng import Draw
from fewstep.evaluation.generation import Options, prepared_velocity
from fewstep.training.parallel import check_supported
from fewstep.training.trainer import start_accelerator


@pytest.fixture(scope="module", autouse=True)
def _accelerate_alone():
    with alone():
        yield


def read(path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """The demo's benchmark, on fewer tokens and images."""
    plan = make_plan(
        merge(raw_config("demo"), {"bench": {"methods": ["facm"], "batches": [8], "repeats": 1}})
    )
    path = tmp_path_factory.mktemp("spec") / "bench.json"
    path.write_text(plan.spec_text("bench", "bench"))
    return path


@pytest.fixture(scope="module")
def rows(spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "bench.csv"
    main(["train-step", "--spec", str(spec), "--out", str(out)])
    return read(out)


def column(rows, name: str, **words: str) -> list[float]:
    return [float(row[name]) for row in rows if words.items() <= row.items()]


def test_every_combination_that_trains_is_there(rows):
    found = {(row["work"], row["tangent"], row["blocks"]) for row in rows}
    assert len(found) == len(rows)
    assert {row["work"] for row in rows} == {"consistency", "facm"}
    for formulation in FORMULATIONS:
        for kind in ("plain", "checkpointed"):
            checkpoint, compiled, _ = train_step.BLOCKS[kind]
            try:
                check_supported(formulation, "none", checkpoint, compiled)
            except ValueError:
                assert ("facm", formulation, kind) not in found
            else:
                assert ("facm", formulation, kind) in found
    for row in rows:
        assert not row["note"] and all(
            float(row[name]) > 0 for name in ("images/s", "ms", "MiB", "GFLOP", "MFU", "time", "memory")
        )


def test_ratios_are_to_functorch_with_plain_blocks(rows):
    for name in ("time", "memory"):
        assert column(rows, name, tangent="functorch") == [1.0] * 2


def test_work_that_is_saved(rows):
    """Counted: the sweep multiplies less than functorch, split more; recomputation adds a forward."""
    for work in ("consistency", "facm"):
        flops = {
            name: column(rows, "GFLOP", work=work, blocks="plain", tangent=name)[0] for name in FORMULATIONS
        }
        assert flops["fused"] < flops["functorch"] < flops["split"]
        (again,) = column(rows, "GFLOP", work=work, blocks="checkpointed", tangent="fused")
        assert again > flops["fused"]
    (one,) = column(rows, "GFLOP", work="consistency", blocks="plain", tangent="fused")
    (three,) = column(rows, "GFLOP", work="facm", blocks="plain", tangent="fused")
    assert 1.5 * one < three < 4 * one


def of(*words: str, **changes) -> BenchSpec:
    """The spec that the command line gives, with another network."""
    options = argparse.ArgumentParser()
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--large", action="store_true")
    train_step.add_options(options)
    spec = train_step.spec_of(options.parse_args(words))
    networks = {name: getattr(spec, name).model_copy(update=changes) for name in ("backbone", "teacher")}
    return spec.model_copy(update=networks)


def arranged(spec: BenchSpec, folder: Path) -> train_step.Trained:
    return train_step.Trained(spec, start_accelerator(spec.precision, folder), "plain", "")


def test_operations_of_the_sweep_are_all_seen(tmp_path):
    """Every product, of values and tangents: counted here and by hand."""
    depth, width, tokens, batch = 2, 256, 256, 2
    spec = of("--methods", depth=depth, width=width, shape=[32, 16, 16])
    dense = batch * tokens * (4 * width**2 + 3 * width * (8 * width // 3)) * depth
    dense += batch * tokens * 32 * width * 2  # first and last layer
    dense += batch * width * (6 * width * depth + 2 * width)  # modulation
    dense += batch * 2 * (256 * width + width**2)  # embeddings of t and s
    scores = batch * tokens**2 * width * depth
    # Attention: two products in the forward, five in the backward (scores anew), five for the tangent.
    expected = 2 * (4 * dense + 12 * scores)
    trained = arranged(spec.model_copy(update={"teacher": None}), tmp_path)
    _, step = train_step._work(spec, batch)["consistency"]
    with OperationCounter() as counted:
        step(trained, "fused", None)
    assert counted.total == pytest.approx(expected, rel=0.01)


def test_memory_where_activations_outweigh_weights(tmp_path):
    """One graph at a time, and none of a tangent. A record of every allocation: always the same numbers."""
    spec = of(shape=[4, 16, 16], width=64, depth=4, heads=2, classes=10)
    trained = arranged(spec, tmp_path)
    for name, most in {"consistency": 0.40, "facm": 0.45, "decm": 0.45}.items():
        _, step = train_step._work(spec, 4)[name]
        peaks = {}
        for formulation in ("functorch", "fused"):
            step(trained, formulation, None)
            peaks[formulation] = meters.peak_bytes(partial(step, trained, formulation, None))
        assert peaks["fused"] < most * peaks["functorch"], name


def test_peak_memory_is_what_lives_at_once():
    def call():
        for _ in range(3):
            a = torch.empty(1 << 20)
            b = torch.empty(1 << 20)
            del a, b

    assert meters.peak_bytes(call) == pytest.approx(2 * 4 * (1 << 20), rel=0.01)


def test_what_a_device_can_do():
    most, source = meters.peak_flops("no")
    assert source == "measured" and 1e9 < most < 1e14


def test_words_of_the_configuration_are_those_of_the_code():
    assert set(get_args(Formulation)) == set(FORMULATIONS)
    assert set(get_args(Blocks)) == set(train_step.BLOCKS)


@pytest.mark.parametrize("preset", [None, "demo", "small"])
def test_the_spec_is_of_the_methods_asked_for(preset, tmp_path):
    plan = make_plan(raw_config(preset))
    (tmp_path / "bench.json").write_text(plan.spec_text("bench", "bench"))
    spec = read_spec(BenchSpec, tmp_path / "bench.json")
    run = plan.run("facm")
    assert spec.backbone == run.backbone and spec.losses["facm"] == run.loss
    assert spec.teacher is not None and not spec.teacher.target_time
    assert spec.precision == run.train.precision and dump(spec)


def test_an_unknown_method_is_named():
    raw = merge(raw_config("demo"), {"bench": {"methods": ["facn"], "batches": [2]}})
    with pytest.raises(ConfigError, match=r"bench\.methods: .*facn.*facm"):
        make_plan(raw)


@pytest.mark.parametrize("what", [*throughput.CASES, "load"])
def test_the_other_stages(what, tmp_path):
    main([what, "--repeats", "1", "--batch", "2", "--out", str(tmp_path / "x.csv")])
    for row in read(tmp_path / "x.csv"):
        assert row["benchmark"] == what and float(row["images/s"]) > 0


TINY = ["train-step", "--network", "tiny", "--repeats", "1", "--methods", "facm", "--formulations", "fused"]


def test_a_failing_case_costs_its_own_row_and_rows_are_written_as_they_come(tmp_path, monkeypatch):
    out, seen = tmp_path / "x.csv", []
    original = train_step.Trained.update

    def update(self, loss, batch, ctx):
        if len(batch.y) == 3:
            assert not out.exists()
            seen.append(read(partial_of(out)))
            raise RuntimeError("expected input and grad types to match\nand more")
        original(self, loss, batch, ctx)

    monkeypatch.setattr(train_step.Trained, "update", update)
    main([*TINY, "--batch", "2", "3", "4", "--blocks", "plain", "--out", str(out)])
    assert not partial_of(out).exists()
    notes = {(row["work"], row["batch"]): row["note"] for row in read(out)}
    assert notes.pop(("facm", "3")) == "RuntimeError: expected input and grad types to match"
    assert len(notes) == 5 and not any(notes.values())
    assert [(row["work"], row["batch"]) for row in seen[0]] == [
        ("consistency", "2"),
        ("facm", "2"),
        ("consistency", "3"),
    ]


def test_steps_change_no_weight_and_all_that_a_training_keeps(tmp_path):
    spec = of("--methods", "facm", **train_step.NETWORKS["tiny"].model_dump(exclude={"kind", "target_time"}))
    trained = arranged(spec, tmp_path)
    before = [weight.detach().clone() for weight in trained.weights]
    _, step = train_step._work(spec, 2)["facm"]
    step(trained, "fused", None)
    assert all(map(torch.equal, before, trained.weights))
    assert len(trained.optimizer.state) == len(before) and trained.ema.updates == 1
    again = train_step.Trained(spec, trained.accelerator, "checkpointed", "", trained)
    assert all(a is b for a, b in zip(again.weights, trained.weights, strict=True))


def test_where_the_time_goes(tmp_path):
    out = tmp_path / "x.csv"
    main([*TINY, "--batch", "2", "--blocks", "plain", "--profile", "--out", str(out)])
    for row in read(tmp_path / "x-profile.csv"):
        assert all(float(row[group]) > 0 for group in ("products", "attention", "copies", "elementwise"))
        assert (float(row["optimizer"]) > 0) == (row["work"] == "facm") and "idle" not in row


class Replayed(dict):
    """Stands in for CapturedSteps: runs a step after its warm-up too, and refuses one that draws anew."""

    def __init__(self, *given):
        super().__init__()
        self.seen = Counter()
        self.graphs = 0

    def run(self, kind, step):
        self.seen[kind] += 1
        if self.seen[kind] <= WARM_UP:
            return step()
        self.graphs = len(self.seen)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Draw, "make", None)
            return step()


def test_captured_steps_are_warmed_up_and_draw_nothing(tmp_path, monkeypatch):
    """On the CPU, without a graph."""
    monkeypatch.setattr(train_step, "CapturedSteps", Replayed)
    monkeypatch.setattr(train_step.parallel, "check_capture", lambda *given: None)
    out = tmp_path / "x.csv"
    words = ["--blocks", "captured", "captured-compiled", "--compiler", "eager", "--batch", "2"]
    main([*TINY, *words, "--methods", "facm", "decm", "--out", str(out)])
    assert len(read(out)) == 6 and not any(row["note"] for row in read(out))


@pytest.mark.skipif(torch.cuda.is_available(), reason="they would run")
def test_without_a_gpu_no_step_is_captured(tmp_path):
    out = tmp_path / "x.csv"
    main([*TINY, "--batch", "2", "--blocks", "captured", "plain", "--out", str(out)])
    assert {row["blocks"] for row in read(out)} == {"plain"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_the_measurements_of_a_gpu_without_one(tmp_path):
    with pytest.raises(ValueError, match=r"^no GPU here, .*--tiny"):
        main(["gpu", "--out", str(tmp_path / "gpu.csv")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_measurements_of_a_gpu_on_tiny_networks(tmp_path, capfd):
    """The whole list, each part in its own process."""
    out = tmp_path / "gpu.csv"
    main(["gpu", "--tiny", "--minutes", "20", "--out", str(out)])
    rows = read(out)
    assert {row["part"] for row in rows} == {part.name for part in gpu.parts(tiny=True)}
    for row in rows:
        assert row["note"] in ("", "done") or row["rule"] == "kernel", row
    shown = capfd.readouterr().out.splitlines()
    assert any(line.startswith("Measured on 20") for line in shown)
    assert sum(line.startswith("| ") for line in shown) == len(rows) + 2


def test_a_part_that_takes_too_long_keeps_its_rows(tmp_path, monkeypatch, capfd):
    """And costs its own time alone; what there is no time for is told."""
    code = "import pathlib, sys, time; from fewstep.bench import partial_of;"
    code += "partial_of(pathlib.Path(sys.argv[-1])).write_text('ms\\n1\\n'); time.sleep(600)"
    slow = gpu.Part("slow", 9, ["-c", code], measures=True)
    wrong = gpu.Part("wrong", 9, ["-c", "raise SystemExit('so')"])
    monkeypatch.setattr(gpu, "parts", lambda tiny: [slow, wrong])
    gpu.run_all(1, tmp_path / "x.csv", tiny=True)
    assert [(row["part"], row["ms"], row["note"]) for row in read(tmp_path / "x.csv")] == [
        ("slow", "1", ""),
        ("slow", "", "ended at its limit of 9 s"),
        ("wrong", "", "failed: so"),
    ]
    needed = gpu.Part("imports", 9, ["-c", "import nothing_of_this_name"], needed=True)
    monkeypatch.setattr(gpu, "parts", lambda tiny: [needed, slow])
    with pytest.raises(ValueError, match=r"^imports: failed: ModuleNotFoundError: .*nothing_of"):
        gpu.run_all(1, tmp_path / "z.csv", tiny=True)
    assert [row["part"] for row in read(tmp_path / "z.csv")] == ["imports"]
    gpu.run_all(0.1, tmp_path / "y.csv", tiny=True)
    assert [row["note"] for row in read(tmp_path / "y.csv")] == ["not started: no time left"] * 2


def test_a_part_ends_with_an_interrupted_command(tmp_path, monkeypatch):
    started = []

    class Interrupted(subprocess.Popen):
        def communicate(self, *given, **named):
            started.append(self)
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu._run(gpu.Part("slow", 600, ["-c", "import time; time.sleep(600)"]), 600, tmp_path / "x.csv")
    assert started[0].wait(60) == -signal.SIGKILL
    started[0].stdout.close()


@pytest.mark.parametrize("words", [["encode", "--repeats", "0"], ["encode", "--batch", "1"], ["nothing"]])
def test_impossible_calls(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    capsys.readouterr()


def test_a_step_of_sd3_with_adapters(tmp_path):
    """Every formulation runs, and the dual holds at most half of what functorch holds above the weights."""
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    out = tmp_path / "sd3.csv"
    words = ["--network", "sd3", "--batch", "2", "--repeats", "1", "--blocks", "plain", "--methods"]
    main(["train-step", *words, "--formulations", "functorch", "fused", "--out", str(out)])
    rows = {row["tangent"]: row for row in read(out)}
    assert rows.keys() == {"functorch", "fused"} and not any(row["note"] for row in rows.values())
    assert float(rows["fused"]["memory"]) <= 0.5


def test_a_missing_compiler_is_told_in_its_row(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    spec = LightningDiT(shape=[4, 2, 2], classes=2, depth=1, width=8, heads=2, patch=2)
    velocity = prepared_velocity(build(spec).eval(), Options("inductor"), torch.device("cpu"), "float32")
    x, t, y = torch.zeros(2, 4, 2, 2), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    case = meters.Case({"case": "compiled"}, lambda: velocity(x, t, t, y), 2)
    case.attempt(case.warm_up)
    assert "compiler" in case.row(case)["note"] and "--compile" not in case.note
