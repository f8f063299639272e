"""A stage that is killed at the worst moment leaves nothing under its outputs' names, and starts again."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from child_processes import child, die_at_rename
from tiny_pipeline import Call, TinyPipeline

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256
from fewstep.config import dump
from fewstep.config.specs import AdoptSpec
from fewstep.data.asset_files import RecordBody, RecordFile


def merge_call(pipeline: TinyPipeline, folder: Path) -> Call:
    folder.mkdir(exist_ok=True)
    for shard in pipeline.plan.inputs("manifest", {"latents": "digits-pixels"})["shards"]:
        shutil.copy(shard, folder)
    return pipeline.encode("digits-pixels", folder)


def adopt_call(pipeline: TinyPipeline, folder: Path) -> Call:
    """The teacher's weights, dressed as somebody's published file."""
    files = folder / "published"
    files.mkdir(parents=True, exist_ok=True)
    tensors, _ = load_model(pipeline.plan.model("teacher"))
    path = files / "weights.pt"
    torch.save({"ema": tensors}, path)
    entry = RecordFile(name=path.name, bytes=path.stat().st_size, sha256=sha256(path), source="here")
    body = RecordBody(name="published", kind="local", title="", licence="none", files=[entry])
    record = folder / "published.json"
    record.write_text(body.model_dump_json())
    backbone = pipeline.plan.run("teacher").backbone
    spec = folder / "adopt.json"
    tokenizer = pipeline.plan.run("teacher").tokenizer
    adopted = AdoptSpec(
        method="teacher", backbone=backbone, asset="published", file=path.name, tokenizer=tokenizer
    )
    spec.write_text(dump(adopted))
    out = folder / "model.safetensors"
    return Call("adopt", ["--spec", str(spec), "--asset", str(record), "--out", str(out)], [out])


def shown(
    stage: str, name: str, suffixes: tuple[str, str], option: str
) -> Callable[[TinyPipeline, Path], Call]:
    """A call of table, figure or claims with the one number that there is."""

    def call(pipeline: TinyPipeline, folder: Path) -> Call:
        spec = pipeline.spec("claims" if stage == "claims" else "table", name, folder)
        first, second = (folder / f"{name}{suffix}" for suffix in suffixes)
        words = ["--spec", str(spec), "--metrics", str(pipeline.score("cd", "cm-2").out)]
        return Call(stage, [*words, "--out", str(first), option, str(second)], [first, second])

    return call


def report_call(pipeline: TinyPipeline, folder: Path) -> Call:
    parts = folder / "parts"
    table = shown("table", "table3", (".csv", ".md"), "--markdown")(pipeline, parts)
    table()
    out = folder / "report.html"
    spec = pipeline.spec("report", "report", folder)
    words = ["--spec", str(spec), "--parts", *map(str, table.outputs), "--out", str(out)]
    return Call("report", words, [out])


CALLS: dict[str, Callable[[TinyPipeline, Path], Call]] = {
    "fetch": lambda pipeline, folder: pipeline.fetch("digits", folder),
    "encode": lambda pipeline, folder: pipeline.encode("digits-pixels", folder, shard=0),
    "merge": merge_call,
    "adopt": adopt_call,
    "train": lambda pipeline, folder: pipeline.train("cd", folder),
    "sample": lambda pipeline, folder: pipeline.sample("cd", "cm-2", folder),
    "reference": lambda pipeline, folder: pipeline.reference(folder),
    "score": lambda pipeline, folder: pipeline.score("cd", "cm-2", folder),
    "table": shown("table", "table3", (".csv", ".md"), "--markdown"),
    "figure": shown("figure", "figure1", (".png", ".csv"), "--csv"),
    "claims": shown("claims", "claims", (".csv", ".md"), "--markdown"),
    "report": report_call,
}
RENAMES = [(name, None) for name in CALLS] + [
    ("fetch", "digits.npz"),
    ("fetch", ".known.json"),
    ("merge", "manifest.index.npz"),
    ("train", "train.jsonl"),
    ("train", "step-000000004"),
    ("table", "table3.md"),
    ("figure", "figure1.csv"),
    ("claims", "claims.md"),
]


@pytest.mark.parametrize(("stage", "rename"), RENAMES)
def test_killed_at_the_rename(pipeline: TinyPipeline, tmp_path, stage, rename):
    """``rename`` is the file whose rename does not happen; None: the stage's own output."""
    (tmp_path / "killed").mkdir()
    call = CALLS[stage](pipeline, tmp_path / "killed")
    if stage == "train":
        call = call.more("--save-steps", "4")
    target = rename or call.out.name
    log = tmp_path / "log"
    assert child(call, log, die_at_rename, name=target) == -signal.SIGKILL, log.read_text()
    assert not any(path.exists() for path in call.outputs if path.name == target)
    call()
    assert all(path.stat().st_size for path in call.outputs)
    (tmp_path / "whole").mkdir()
    whole = CALLS[stage](pipeline, tmp_path / "whole")
    whole()
    for path, other in zip(call.outputs, whole.outputs, strict=True):
        if path.suffix == ".npz":  # zip members carry the time of day
            with np.load(path) as ours, np.load(other) as theirs:
                assert all((ours[key] == theirs[key]).all() for key in theirs)
        else:
            assert sha256(path) == sha256(other), path


def test_the_table_shows_the_number(pipeline, tmp_path):
    """The calls above are not about empty files."""
    call = CALLS["table"](pipeline, tmp_path)
    call()
    metrics = json.loads(pipeline.score("cd", "cm-2").out.read_text())
    lines = csv.DictReader(call.out.read_text().splitlines())
    found = [line for line in lines if (line["method"], line["sampler"], line["steps"]) == ("cd", "cm", "2")]
    assert found and all(float(line["ours"]) == pytest.approx(metrics["fid"], rel=1e-3) for line in found)
