"""How a training uses its devices stands in the profile, and reaches the stage; so does the benchmark."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from configs import ROOT

from fewstep.config.base import read_yaml

OPTIONS = "--shard fsdp2 --checkpoint-blocks --compile-blocks"
DECM = "results/demo/decm/base/0/model.safetensors"


def dry_run(folder, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "-p", "--directory", str(folder), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def trainings(printed: str) -> list[str]:
    return re.findall(r"fewstep\.train .*", printed)


def with_options(folder, options: str) -> list[str]:
    """The demo's profile, and one with options of trainings."""
    (folder / "profile").mkdir()
    text = f'set-resources:\n  train: {{options: "{options}"}}\n'
    (folder / "profile/config.yaml").write_text(text)
    return ["--profile", "profiles/demo", "--profile", str(folder / "profile")]


@pytest.mark.slow
def test_options_of_a_profile_reach_the_training(tmp_path):
    both = with_options(tmp_path, OPTIONS)
    ours = trainings(dry_run(tmp_path / "ours", *both, DECM))
    plain = trainings(dry_run(tmp_path / "plain", "--profile", "profiles/demo", DECM))
    assert len(ours) == len(plain) > 1
    assert all(f" {OPTIONS} > " in line for line in ours)
    assert [line.replace(f"{OPTIONS} ", " ").split() for line in ours] == [line.split() for line in plain]


@pytest.mark.slow
def test_trainings_sample_themselves_where_a_profile_asks_for_it(tmp_path):
    """They are given no further input, which would train again what is there."""
    both = with_options(tmp_path, "--watch-every 100")
    ours = trainings(dry_run(tmp_path / "ours", *both, DECM))
    plain = trainings(dry_run(tmp_path / "plain", "--profile", "profiles/demo", DECM))
    assert len(ours) == len(plain) and not any("--watch" in line for line in plain)
    sampled = [line for line in ours if " --watch '{" in line]
    assert all("--watch-every 100 " in line for line in ours)
    assert len(sampled) == 2 and all("/decm/base/" in line or "/teacher/base/" in line for line in sampled)
    assert all("--watch-reference results/demo/references/digits.npz > " in line for line in sampled)


def test_options_rerun_nothing():
    """They are a resource: neither in a spec nor in params, and no profile reruns for a command's text."""
    rule = (ROOT / "workflow/rules/train.smk").read_text().split("rule train:")[1].split("\nrule ")[0]
    assert 'options="",' in rule.split("resources:")[1].split("shell:")[0] and "params:" not in rule
    for profile in (ROOT / "profiles").glob("*/config.yaml"):
        triggers = read_yaml(profile).get("rerun-triggers")
        assert triggers is None or set(triggers) == {"mtime", "params", "input"}, profile


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "results", "gpus"),
    [
        ("demo", "results/demo", 0),
        ("slurm", "results", 1),
        ("local", "results", 1),
        ("small", "results/small", 1),
    ],
)
def test_the_benchmark_is_one_job_in_every_profile(tmp_path, profile, results, gpus):
    printed = dry_run(tmp_path, "--profile", f"profiles/{profile}", f"{results}/bench.csv")
    assert re.search(r"^total +2$", printed, re.MULTILINE), printed
    assert f"fewstep.launch --gpus {gpus} --gres= --attempt 1 fewstep.bench train-step" in printed
