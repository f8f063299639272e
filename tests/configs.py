"""Configurations for tests: as Snakemake would hand them over."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from fewstep.config import ConfigError
from fewstep.config.base import complete, merge, read_yaml
from fewstep.plan import Plan, Run
from fewstep.plan.jobs import dependencies
from fewstep.plan.marks import hyperparameter_sources, values

ROOT = Path(__file__).parent.parent


def raw_config(preset: str | None = None) -> dict[str, Any]:
    return complete(read_yaml(ROOT / f"config/{preset}.yaml") if preset else {}, ROOT)


def unmarked(run: Run) -> list[str]:
    """The hyper-parameters whose source is not known."""
    return sorted({key for key, _ in values(run)} - {entry.key for entry in hyperparameter_sources(run)})


def make_plan(raw: dict[str, Any]) -> Plan:
    return Plan(copy.deepcopy(raw), ROOT)


def behind(plan: Plan, *targets: str) -> dict[str, list[dict[str, str]]]:
    """The jobs behind some targets: stage -> their wildcards."""
    found: dict[str, list[dict[str, str]]] = {}
    for job in dependencies(plan, [file for target in targets for file in plan.parts_of(target)]):
        found.setdefault(job.stage, []).append(job.key)
    return found


def wildcard_values(jobs: list[dict[str, str]] | None, key: str) -> set[str]:
    """Values of one wildcard."""
    return {job[key] for job in jobs or []}


def teacher_file(plan: Plan, run: str) -> list[str]:
    return plan.inputs("train", {"run": run, "seed": "0"})["teacher"]


def sample_inputs(plan: Plan, run: str) -> dict[str, list[str]]:
    """What a job that samples from a run reads."""
    key = {"run": run, "seed": "0", "sampler": "cm", "steps": "2", "images": next(iter(plan.image_sets))}
    return plan.inputs("sample", key)


def extractor_file(plan: Plan, protocol: str = "digits") -> str:
    """The weights of a protocol's extractor."""
    (file,) = plan.inputs("reference", {"protocol": protocol})["extractor"]
    return file


def copied(folder: Path) -> Path:
    """A folder with a copy of config/."""
    shutil.copytree(ROOT / "config", folder / "config")
    return folder


def told(folder: Path, preset: str = "", **given) -> list[str]:
    """The lines told of a preset, config/mine.yaml, or of what is given in another way."""
    mine = folder / "config/mine.yaml"
    mine.write_text(preset)
    raw = merge(read_yaml(mine), given)
    with pytest.raises(ConfigError) as error:
        Plan(complete(raw, folder), folder, [mine] if preset else [])
    return str(error.value).split("\n")


def dry_run(words: Iterable[str], folder: Path) -> None:
    """What a user would type after `snakemake`, as a dry run with its files in a folder."""
    call = [sys.executable, "-m", "snakemake", *words, "-n", "--quiet", "--directory", str(folder)]
    ended = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"snakemake {' '.join(words)}\n{ended.stdout}{ended.stderr}"
