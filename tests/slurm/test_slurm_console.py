"""What a user sees of a run: a line a job, and the error of one that failed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT

from fewstep.config.base import read_yaml

PROFILES = sorted(path.parent.name for path in (ROOT / "profiles").glob("*/config.yaml"))
OVERLAYS = {"slurm-multinode"}
WORKFLOW = f"""
outer = False
include: "{ROOT}/workflow/rules/console.smk"
rule all:
    input: "good.txt", "good-too.txt", "bad.txt"
rule spec:
    output: "spec.json"
    log: "spec.log"
    shell: "touch {{output}}"
rule good:
    input: "spec.json"
    output: "good{{more,.*}}.txt"
    log: "good{{more}}.log"
    shell: "touch {{output}}"
rule bad:
    output: "bad.txt"
    log: "bad.log"
    shell: "cp said {{log}}; exit 1"
"""


@pytest.mark.parametrize("name", [name for name in PROFILES if name not in OVERLAYS])
def test_profiles_show_errors(name):
    made = read_yaml(ROOT / f"profiles/{name}/config.yaml")
    assert made["show-failed-logs"] is True
    # `rules` and `all` would hide the errors of jobs as well
    assert made["quiet"] == ["host"]


def test_every_other_profile_is_an_overlay():
    assert set(PROFILES) > OVERLAYS
    for name in OVERLAYS:
        assert read_yaml(ROOT / f"profiles/{name}/config.yaml").keys() == {"set-resources", "set-threads"}


def shown(folder: Path, said: str, *words: str) -> str:
    (folder / "Snakefile").write_text(WORKFLOW)
    (folder / "said").write_text(said)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        "--keep-going",
        "--show-failed-logs",
        *words,
    ]
    environment = {**os.environ, "TERM": "dumb"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stderr + done.stdout


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "decm/base/0: 0%\r50%\r100%\nsomething\nerror: a.yaml: b: is wrong\n",
            ["error: a.yaml: b: is wrong"],
        ),
        (
            "error: x.tar: damaged\n(refused before; to try again, remove y)\n",
            ["error: x.tar: damaged", "(refused before; to try again, remove y)"],
        ),
        (
            "error: x\nerror: a: b\nc: d\nW1126 18:00:00 torch\nTraceback (most recent call last):\n  File\n",
            ["error: a: b", "c: d"],
        ),
        ("".join(f"line {n}\n" for n in range(100)), [f"line {n}" for n in range(90, 100)]),
        ("0%\r10%\r20%", ["20%"]),
        ("", []),
    ],
)
def test_a_failed_job_is_its_error(tmp_path, said, expected):
    text = shown(tmp_path, said)
    found = text.partition("Error in rule bad: bad.txt\n")[2].partition("log: bad.log\n")[0]
    assert [line.strip() for line in found.splitlines() if line.strip()] == expected
    assert "RuleException" not in text and "Select jobs" not in text and "now spec" not in text
    assert sum("done, now good good.txt" in line for line in text.splitlines()) == 1


def test_a_retry_that_fails_alike_is_one_line(tmp_path):
    text = shown(tmp_path, "error: a\n", "--retries", "3")
    assert text.count("    error: a\n") == 1 and text.count("Error in rule bad: bad.txt: the same again") == 3


def test_each_line_tells_how_long_it_goes_on(tmp_path):
    """While a rule runs of which no job has ended, nothing is known."""
    lines = [line for line in shown(tmp_path, "").splitlines() if re.search(r"of \d done, ", line)]
    assert len(lines) >= 2
    time = r"\d+:\d\d:\d\d"
    for line in lines:
        assert re.search(rf" \(after {time}(, (at least|about) {time} left)?\)$", line), line
    first, second = (" left)" in line for line in lines if " now good " in line)
    assert not first and second


def test_the_file_holds_everything(tmp_path):
    shown(tmp_path, "error: a\n")
    (log,) = tmp_path.glob(".snakemake/log/*.log")
    assert {"rule spec:", "rule good:", "Error in rule bad:"} <= {
        line.strip().removeprefix("local") for line in log.read_text().splitlines()
    }


def test_a_dry_run_says_why(tmp_path):
    text = shown(tmp_path, "", "-n")
    assert re.search("reason: .*Missing output files: spec.json", text) and "rule spec:" in text, text
