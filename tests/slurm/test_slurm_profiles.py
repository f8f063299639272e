"""The shipped profiles for Slurm, without a cluster."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT
from slurm_workdir import profile

SLURM, OVERLAY = profile("slurm"), profile("slurm-multinode")
RULES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))


def test_the_page_on_clusters_shows_the_lines_to_edit():
    text = (ROOT / ".github/docs/cluster.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(default-resources:\n.*?)```", text, re.DOTALL)
    lines = (ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8").splitlines()
    assert not set(block.splitlines()) - set(lines)


@pytest.mark.parametrize("made", [SLURM, OVERLAY], ids=["slurm", "slurm-multinode"])
def test_rules_exist(made):
    rules = set(re.findall(r"^rule (\w+):", RULES, re.MULTILINE))
    assert made["set-threads"].keys() <= made["set-resources"].keys() <= rules


def test_the_overlay_changes_only_the_training():
    assert OVERLAY.keys() == {"set-resources", "set-threads"}
    for key in OVERLAY:
        assert {**OVERLAY[key], "train": None} == {**SLURM[key], "train": None}
    train = OVERLAY["set-resources"]["train"]
    assert train["tasks"] == train["nodes"], "one launcher for each node"


def test_the_command_on_several_nodes(tmp_path: Path):
    words = ["--snakefile", ROOT / "Snakefile", "--configfile", ROOT / "config/demo.yaml", "--dry-run"]
    words += ["--profile", ROOT / "profiles/slurm", "--workflow-profile", ROOT / "profiles/slurm-multinode"]
    words += ["--printshellcmds", "--cores", "64", "--", "results/demo/decm/base/0/model.safetensors"]
    command = [sys.executable, "-m", "snakemake", *map(str, words)]
    shown = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    launched = re.findall(r"-m fewstep.launch (.*?) --lock (\S+)", shown)
    model = "results/demo/decm/base/0/model.safetensors.lock"
    assert ("--nodes 2 --gpus 0 --gres=gpu:4 --threads 32", model) in launched
