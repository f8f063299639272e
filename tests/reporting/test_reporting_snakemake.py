"""Snakemake's own report of a finished miniature: `snakemake --profile profiles/demo --report`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT, make_plan, raw_config
from PIL import Image

from fewstep.plan.jobs import dependencies
from fewstep.plan.paths import FILES, OUTPUTS

TARGETS = ["table1", "figure1", "claims", "report"]


def outputs(plan, job) -> list[str]:
    """All files of a job's rule."""
    kinds = {"manifest": ["manifest"], "figure": ["png", "csv"]}.get(job.stage, OUTPUTS[job.stage])
    return [plan.path(FILES[kind], **job.key) for kind in kinds]


def call(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles/demo"), "--directory", str(folder), "--config"]
    command += [f"targets=[{','.join(TARGETS)}]", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_made_without_warnings(tmp_path):
    """Of results that were copied without their times: --touch, and then the report."""
    plan = make_plan({**raw_config("demo"), "targets": TARGETS})
    files = {file for job in dependencies(plan, plan.targets()) for file in outputs(plan, job)}
    jobs = dependencies(plan, plan.targets())
    files |= {file for job in jobs for file in plan.inputs(job.stage, job.key).get("spec", [])}
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (8, 8), "red").save(path)
        else:
            path.write_text("a,b\n1,2\n" if path.suffix == ".csv" else "<p>text</p>\n")
    call(tmp_path, "--touch")
    out = tmp_path / "report.html"
    told = call(tmp_path, "--report", str(out))
    assert not re.search(r"(?i)warning|missing|error", told), told
    text = out.read_text(encoding="utf-8")
    assert "Start with" in text and "DAG" in text
    for shown in ("Tables", "Figures", "Claims", "Report", "Training curves"):
        assert f'"{shown}"' in text, shown
    assert text.count("the numbers behind the picture are in the CSV file") == 1
