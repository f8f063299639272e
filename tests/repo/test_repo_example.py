"""The README's worked example of a new method works as it is printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT
from source_files import text, tracked

SUITE = ["tests/plan", "tests/repo", "tests/methods/test_methods_folders.py"]
SUITE += ["tests/methods/test_methods_contract.py"]
ELSEWHERE = [
    # not about methods, and long
    "tests/repo/test_repo_example.py",
    "tests/repo/test_repo_lint.py",
    "tests/repo/test_repo_envs.py",
    "tests/repo/test_repo_readme.py::test_snakemake_calls",
    "tests/plan/test_plan_targets.py::test_everything_plans_in_every_profile",
    "tests/plan/test_plan_errors.py::test_snakemake_shows_the_error_before_any_job",
]


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """File -> text, in the order of the section: each is named in the paragraph before its code."""
    section = text(Path("README.md")).split("### Add a method\n")[1].split("\n### ")[0]
    found = dict(
        re.findall(r"^`(\S+)`, [^`]*?\n\n```(?:python|yaml)\n(.*?)```", section, re.DOTALL | re.MULTILINE)
    )
    assert [Path(name).name for name in found] == ["params.py", "loss.py", "lsd.yaml"]
    return found


@pytest.fixture(scope="module")
def copy(blocks, tmp_path_factory) -> Path:
    """This repository with the example applied."""
    top = tmp_path_factory.mktemp("copy")
    for path in tracked():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, top / path)
    for name, code in blocks.items():
        (top / name).parent.mkdir(exist_ok=True)
        (top / name).write_text(code)
    run(top, "fewstep.methods", "README.md")
    run(top, "fewstep.config", "workflow/schemas")
    return top


def run(copy: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_is_short(blocks):
    assert sum(len(code.splitlines()) for code in blocks.values()) < 70


@pytest.mark.slow
def test_the_suite_passes_with_it(copy):
    """What concerns configuration, plan, layout, and the contract of this method and its neighbours."""
    words = [word for name in ELSEWHERE for word in ("--deselect", name)]
    out = run(copy, "pytest", "-n", "0", "-m", "not slow and not slurm", "-rA", *SUITE, *words)
    for name in ("losses_are_pure", "every_default_has_a_source", "no_key_of_a_loss_repeats_its_default"):
        assert re.search(rf"^PASSED .*{name}\[.*lsd.*\]", out, re.MULTILINE), out


@pytest.mark.slow
def test_a_cell_can_be_asked_for(copy):
    target = re.search(r"`(results/demo/lsd/\S+\.json)`", text(Path("README.md")))[1]
    out = run(copy, "snakemake", "-n", "--quiet", "rules", "--profile", "profiles/demo", target)
    assert re.search(r"^train +4$", out, re.MULTILINE), out  # tokenizer, extractor, teacher, student
