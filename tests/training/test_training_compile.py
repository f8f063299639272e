"""Compiled blocks: how many graphs a training compiles, and when; where inductor keeps its code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipeline import Call, TinyPipeline, replaced

from fewstep.core.method import kind_of_step
from fewstep.training.parallel import keep_compiled_code
from fewstep.training.trainer import Trainer

where = [""]
graphs = Counter[str]()
"""By the place in the training that is in ``where``."""


def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """A backend that compiles nothing, and counts the graphs that it is given."""
    graphs[where[0]] += 1
    return graph.forward


torch._dynamo.register_backend(counting, name="counting")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing compiled, no place for it named; put back as it was."""
    torch.compiler.reset()  # which names one
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    yield
    torch.compiler.reset()


def counted(call: Call, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Graphs that a training with compiled blocks compiles, by where it is."""
    original, seen = Trainer._step, Counter[tuple[str, ...]]()

    def step(self: Trainer, step: int) -> Any:
        kind = kind_of_step(self.method.updates(step))
        seen[kind] += 1
        where[0] = "later" if seen[kind] > 1 else "first of its kind"
        return original(self, step)

    where[0] = "before the first step"
    graphs.clear()
    torch.compiler.reset()
    monkeypatch.setattr(Trainer, "_step", step)
    call.more("--compile-blocks", "counting")()
    monkeypatch.setattr(Trainer, "_step", original)
    return dict(graphs)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", ["facm", "decm"])
def test_graphs_do_not_depend_on_the_depth(pipeline: TinyPipeline, tmp_path, monkeypatch, name, precision):
    """The frozen teacher's; the student's value and tangent; its value alone."""
    recipe = {"train": {"precision": precision}, "guidance": {"calibration": 50}}
    for depth in (1, 3):
        sizes = {net: {"depth": depth} for net in ("lightningdit-digits-teacher", "lightningdit-digits")}
        deep = pipeline.varied({"settings": {"backbones": sizes, "recipes": {"digits": recipe}}})
        teacher = deep.train("teacher", tmp_path / f"teacher-{depth}")()
        call = replaced(deep.train(name, tmp_path / f"{depth}"), "--teacher", str(teacher))
        found = counted(call, monkeypatch)
        assert sum(found.values()) == 3 and "later" not in found, found


@pytest.mark.parametrize("name", ["ctm", "twinflow"])
def test_methods_with_many_kinds_of_calls(pipeline: TinyPipeline, tmp_path, monkeypatch, name):
    """More graphs of one function than torch allows by itself are no error."""
    with torch._dynamo.config.patch(recompile_limit=2):
        found = counted(pipeline.train(name, tmp_path), monkeypatch)
    assert sum(found.values()) > 2 and "later" not in found


def test_where_inductor_keeps_its_code(pipeline: TinyPipeline, tmp_path: Path):
    """Beside the model, unless the user has named a place."""
    pipeline.train("cd", tmp_path).more("--compile-blocks", "eager")()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    keep_compiled_code(tmp_path / "another")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")


def test_the_self_test_looks_at_compiled_blocks(pipeline: TinyPipeline, tmp_path, monkeypatch):
    """It finds the error of their tangent that it finds without them."""
    found = []
    original = Trainer._measure

    def measure(self: Trainer) -> None:
        original(self)
        found.append(self.progress.self_test)

    monkeypatch.setattr(Trainer, "_measure", measure)
    for name, more in {"plain": (), "compiled": ("--compile-blocks", "counting")}.items():
        pipeline.train("facm", tmp_path / name).more(*more)()
    plain, compiled = found
    assert compiled["tangent_error"] == pytest.approx(plain["tangent_error"], rel=0.2)
