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

TARGETS = ["table4", "figure6", "report"]


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
    jobs = dependencies(plan, plan.targets())
    files = {file for job in jobs for file in outputs(plan, job)}
    files |= {file for job in jobs for file in plan.inputs(job.stage, job.key).get("spec", [])}
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (8, 8), "red").save(path)
        else:
            path.write_text("a,b\n1,2\n" if path.suffix == ".csv" else "<p>text</p>\n")
    call(tmp_path, "--touch", "--forceall")
    out = tmp_path / "report.html"
    told = call(tmp_path, "--report", str(out))
    assert not re.search(r"(?i)warning|missing|error", told), told
    text = out.read_text(encoding="utf-8")
    assert "Start with" in text
    for category in ("Tables", "Figures", "Report", "Training curves"):
        assert f'"{category}"' in text, category
    trainings = sum(job.stage == "train" for job in jobs)
    captions = {"the numbers behind the picture": 1, "one line for each row": 1, "one JSON object": trainings}
    assert {words: text.count(words) for words in captions} == captions


def test_what_it_shows_has_a_caption():
    """Also what the miniature above has not, as the claims."""
    rules = ROOT / "workflow/rules"
    text = "".join(path.read_text(encoding="utf-8") for path in rules.glob("*.smk"))
    captions = re.findall(r'caption="(.*?)"', text)
    assert len(captions) == len(re.findall(r"\breport\(", text)) == 5
    assert all((rules / caption).read_text(encoding="utf-8").strip() for caption in captions)
