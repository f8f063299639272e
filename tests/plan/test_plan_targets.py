"""The plan: what the paper's and the demo's targets are made of."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from configs import ROOT, behind, teacher_file

from fewstep.config import dump, read_spec
from fewstep.config.__main__ import rendered
from fewstep.config.specs import CellKey, LatentCard, SampleSpec, TrainSpec

SPECS = {"train": ("decm/freq-5/0", TrainSpec), "sample": (None, SampleSpec)}


def test_schemas_are_up_to_date():
    """`python -m fewstep.config workflow/schemas` writes them."""
    for name, text in rendered().items():
        assert (ROOT / "workflow/schemas" / name).read_text() == text, name


def test_every_table_names_its_cells(paper_plan):
    keys = paper_plan.tables["table3"].all_cells
    assert (
        CellKey(method="decm", variant="base", seed=0, sampler="mix", steps=4, protocol="decm-fid50k") in keys
    )
    assert len(keys) == len(set(keys))
    # fifteen rows, of which (g), (h), (j) and (n) are one run, four columns, two protocols
    assert len(keys) == 12 * 4 * 2


def test_variants_change_what_they_say(demo_plan):
    loss = demo_plan.run("decm", "freq-5").loss
    assert (loss.freq, loss.times.segments) == (5, 16)
    assert demo_plan.run("decm", "fm-cd").loss.n2n is False
    assert demo_plan.run("decm").loss.freq == 3


def test_teacher_is_adopted_at_paper_scale_and_trained_in_the_demo(paper_plan, demo_plan):
    assert re.fullmatch(paper_plan.runs_pattern("adopt"), "teacher/base")
    assert re.fullmatch(demo_plan.runs_pattern("train"), "teacher/base")
    assert not re.fullmatch(demo_plan.runs_pattern("adopt"), "teacher/base")
    assert teacher_file(paper_plan, "decm/base") == ["results/teacher/base/0/model.safetensors"]
    assert teacher_file(paper_plan, "teacher/base") == []


def test_demo_numbers_stay_below_results_demo(demo_plan):
    assert all(target.startswith("results/demo/") for target in demo_plan.targets())


@pytest.mark.parametrize("preset", [None, "demo"])
def test_specs_survive_the_disk(preset, tmp_path, paper_plan, demo_plan):
    plan = demo_plan if preset else paper_plan
    run = plan.run("decm", "freq-5")
    text = plan.spec_text("train", "decm/freq-5/0")
    (tmp_path / "spec.json").write_text(text)
    assert dump(read_spec(TrainSpec, tmp_path / "spec.json")) == text + "\n"
    assert isinstance(read_spec(TrainSpec, tmp_path / "spec.json").latents, LatentCard)
    assert run.loss == read_spec(TrainSpec, tmp_path / "spec.json").loss


def test_planning_needs_no_torch():
    """Everything that Snakemake imports, with torch, numpy and the like not to be had."""
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'accelerate', 'diffusers', 'webdataset', "
        "'torch_fidelity', 'snakemake'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from fewstep.plan import Plan\n"
        "from fewstep.config.base import read_yaml\n"
        "plan = Plan(read_yaml(Path('config/config.yaml')))\n"
        "assert plan.spec_text('train', 'decm/base/0')\n"
        "plan.targets(), plan.jobs(), plan.spec_text('report', 'report'), plan.spec_text('costs', 'costs')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def dry_run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


@pytest.mark.parametrize("profile", ["demo", "slurm", "local", "small"])
def test_everything_plans_in_every_profile(profile, tmp_path):
    # An empty working directory of its own, so that results already made do not shorten the plan.
    place = ["--profile", f"profiles/{profile}", "--directory", str(tmp_path)]
    out = dry_run(*place, "--config", "targets=all")
    for rule in ("fetch", "encode", "train", "sample", "score", "table", "figure", "claims", "report_page"):
        assert re.search(rf"^{rule} +\d+$", out, re.MULTILINE), out


@pytest.mark.parametrize("scale", ["paper_plan", "demo_plan"])
def test_every_table_has_something_behind_it(scale, request):
    plan = request.getfixturevalue(scale)
    for name, table in plan.config.tables.items():
        if not any(row.method for row in table.rows):
            continue
        found = behind(plan, name)
        assert {"train", "adopt"} & found.keys(), name
        assert "sample" in found or table.kind == "training", name


@pytest.mark.slow
def test_a_single_cell_is_a_target(tmp_path):
    out = dry_run(
        *("--profile", "profiles/slurm", "--directory", str(tmp_path)),
        "results/decm/freq-5/0/mix-8/decm-fid50k.json",
    )
    assert re.search(r"^score +1$", out, re.MULTILINE)
    assert re.search(r"^train +1$", out, re.MULTILINE)
    assert re.search(r"^adopt +1$", out, re.MULTILINE)
