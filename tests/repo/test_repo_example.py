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
from source_files import text

NEEDED = ("Snakefile", "pyproject.toml", "config", "fewstep", "profiles", "workflow", "tests/methods")
NEEDED += ("tests/configs.py", "tests/conftest.py")


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """Code of the section: parameters, method, entry."""
    section = text(Path("README.md")).split("### Add a method\n")[1].split("\n### ")[0]
    found = re.findall(r"```(python|yaml)\n(.*?)```", section, re.DOTALL)
    assert [language for language, _ in found] == ["python", "python", "yaml"]
    return [code for _, code in found]


@pytest.fixture(scope="module")
def copy(blocks, tmp_path_factory) -> Path:
    """The parts of this repository that the example needs, with the example applied."""
    top = tmp_path_factory.mktemp("copy")
    for name in NEEDED:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, top / name)
    parameters, method, entry = blocks
    path = top / "fewstep/config/losses.py"
    before, union, after = path.read_text().partition("Loss = Annotated[\n")
    name = re.match(r"class (\w+)\(", parameters)[1]
    assert union and name not in before
    first, rest = after.split("\n", 1)
    path.write_text(f"{before}{parameters}\n\n{union}{first}\n    | {name}\n{rest}")
    (top / "fewstep/methods/lsd.py").write_text(method)
    (top / "config/methods/lsd.yaml").write_text(entry)
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
    assert sum(len(code.splitlines()) for code in blocks) < 60


@pytest.mark.slow
def test_the_contract_holds(copy):
    out = run(
        copy,
        "pytest",
        "-o",
        "addopts=",
        "-rA",
        "tests/methods/test_methods_contract.py",
        "-k",
        "lsd or every_method_has",
    )
    assert len(re.findall(r"^PASSED .*\[.*lsd\]", out, re.MULTILINE)) >= 6, out


@pytest.mark.slow
def test_a_cell_can_be_asked_for(copy):
    target = re.search(r"`(results/demo/lsd/\S+\.json)`", text(Path("README.md")))[1]
    out = run(copy, "snakemake", "-n", "--quiet", "rules", "--profile", "profiles/demo", target)
    assert re.search(r"^train +4$", out, re.MULTILINE), out  # tokenizer, extractor, teacher, student
