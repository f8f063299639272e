"""The shipped profile on a real Slurm: one node, two nodes."""

from __future__ import annotations

import json

import pytest
import torch
from slurm_bench import Bench, several_nodes

from fewstep.checkpoint import load_model

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
MODEL = "results/demo/decm/base/0/model.safetensors"


def test_a_cell_from_data_to_score(built: Bench):
    metrics = json.loads((built.results / "decm/base/0/mix-4/digits.json").read_text())
    assert metrics["fid"] > 0
    assert not list(built.results.rglob("state-*")), "training state is left behind"
    for rule in ("encode", "train", "sample", "reference", "score"):
        assert built.job(rule, "COMPLETED"), rule


def test_two_nodes_train_the_same(built: Bench, bench: Bench):
    (bench.folder / MODEL).unlink()
    bench.replace_train(several_nodes())
    with bench.snakemake(MODEL) as run:
        run.finish()
    job = bench.job("train", "COMPLETED")
    assert bench.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%D %N").split() == ["2", "n[1-2]"]
    ours, theirs = (load_model(each.folder / MODEL)[0] for each in (bench, built))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-3, atol=2e-5)
    assert any((ours[name] != theirs[name]).any() for name in ours), "it ran in one process"
