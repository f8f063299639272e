"""Training on a GPU: captured steps, resuming, and the same numbers as on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import ROOT
from tiny_pipeline import Call, TinyPipeline
from trained_files import curve

from fewstep.backbones.model_file import load_model
from fewstep.training.trainer import Trainer

pytestmark = pytest.mark.gpu

STEPS = 30
METHODS = ["facm", "decm", "cd"]


def longer(pipeline: TinyPipeline, precision: str = "no") -> TinyPipeline:
    return pipeline.varied(
        {
            "settings": {"recipes": {"digits": {"train": {"precision": precision}}}},
            "methods": {name: {"train": {"steps": STEPS}} for name in METHODS},
        }
    )


def pair(pipeline: TinyPipeline, method: str, folder: Path, *names: str) -> tuple[Call, Call]:
    """The same training twice, into folders of these names."""
    first, second = (pipeline.train(method, folder / name) for name in names)
    return first, second


def distance(call: Call, reference: Call) -> float:
    """Of all weights, relative to their norm."""
    ours, theirs = (
        torch.cat([tensor.double().flatten() for _, tensor in sorted(load_model(each.out)[0].items())])
        for each in (call, reference)
    )
    return float((ours - theirs).norm() / theirs.norm())


def alike(call: Call, reference: Call, tolerance: float) -> None:
    """Equal curves and weights, to a tolerance that leaves room for sums in another order."""
    lines, expected = curve(call.outputs[1]), curve(reference.outputs[1])
    assert [(line["step"], line["update"]) for line in lines] == [
        (line["step"], line["update"]) for line in expected
    ]
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=10 * tolerance, abs=tolerance)
    assert distance(call, reference) < tolerance


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_captured_equals_not_captured(pipeline: TinyPipeline, tmp_path, name, precision):
    plain, captured = pair(longer(pipeline, precision), name, tmp_path, "plain", "captured")
    plain()
    captured.more("--capture")()
    alike(captured, plain, 1e-3 if precision == "no" else 1e-2)


@pytest.mark.parametrize("options", [[], ["--capture"]])
def test_resumed_equals_uninterrupted(pipeline: TinyPipeline, tmp_path, monkeypatch, options):
    whole, resumed = pair(longer(pipeline), "decm", tmp_path, "whole", "resumed")
    whole.more(*options)()
    resumed = resumed.more(*options)
    original = Trainer._step

    def stop(self: Trainer, step: int) -> Any:
        if step == 17:
            raise KeyboardInterrupt
        return original(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_step", stop)
        resumed.more("--save-steps", "10")()
    done: list[int] = []

    def noted(self: Trainer, step: int) -> Any:
        done.append(step)
        return original(self, step)

    monkeypatch.setattr(Trainer, "_step", noted)
    resumed()
    assert done == [*range(10, STEPS)]
    alike(resumed, whole, 1e-3)


@pytest.mark.parametrize(("precision", "tolerance"), [("no", 1e-3), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", ["facm", "decm"])
def test_the_numbers_of_a_cpu(pipeline: TinyPipeline, tmp_path: Path, name, precision, tolerance):
    recipe = {"recipes": {"digits": {"train": {"precision": precision}}}}
    gpu, cpu = pair(pipeline.varied({"settings": recipe}), name, tmp_path, "gpu", "cpu")
    gpu()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "fewstep.train", *cpu.arguments]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    alike(gpu, cpu, tolerance)


@pytest.mark.parametrize("options", [["--device-batch", "8"], ["--compile-blocks"]])
def test_captured_with_other_options(pipeline: TinyPipeline, tmp_path, options):
    plain, captured = pair(longer(pipeline), "facm", tmp_path, "plain", "captured")
    plain()
    captured.more("--capture", *options)()
    alike(captured, plain, 1e-3)
