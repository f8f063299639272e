"""The workflow used from elsewhere: as a module, deployed, from another folder; Snakemake's own report."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configs import ROOT, raw_config

MODULE = """
{before}
module fewstep:
    snakefile: {workflow}
    config: config

use rule * from fewstep
"""


def snakemake(folder: Path, *words: str, **variables: str) -> str:
    """Call Snakemake in ``folder``, without this repository on the path unless ``variables`` put it there."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [sys.executable, "-m", "snakemake", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def outer(folder: Path, before: str = "", workflow: str = f'"{ROOT}/workflow/Snakefile"') -> None:
    (folder / "Snakefile").write_text(MODULE.format(workflow=workflow, before=before))


def test_a_module_needs_no_configuration(tmp_path):
    """config/ of this repository is found, and nothing is copied."""
    outer(tmp_path)
    out = snakemake(tmp_path, "-n", "--printshellcmds", "--", "results/table1.csv")
    assert re.search(r"^table +1$", out, re.MULTILINE) and re.search(r"^train +\d+$", out, re.MULTILINE)
    assert " --out results/table1.csv " in out
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["Snakefile"]


def test_a_module_takes_keys_from_the_outer_configuration(tmp_path):
    """A preset, and paths of its own: rules and plan agree on them."""
    (tmp_path / "mine.yaml").write_text("targets: [table4]\npathvars: {results: elsewhere}\n")
    outer(tmp_path, f'configfile: "{ROOT}/config/demo.yaml"\nconfigfile: "mine.yaml"\n')
    out = snakemake(tmp_path, "-n", "--printshellcmds")
    assert re.search(r"--metrics elsewhere/decm/base/0/.* --out elsewhere/table4\.csv ", out)
    assert "results/demo/assets/digits.json" in out, "the preset's other paths stay"


def test_jobs_of_a_module_find_the_package(tmp_path):
    outer(tmp_path, f'configfile: "{ROOT}/config/demo.yaml"\n')
    snakemake(tmp_path, "--cores", "1", "--", "results/demo/assets/digits.json", "results/demo/plan.csv")
    assert (tmp_path / "results/demo/assets/digits.json").is_file()


def test_a_deployed_workflow_reads_its_copy_of_config(tmp_path):
    """snakedeploy copies config/ and names a workflow on a hosting service; the package is installed.

    A git repository on disk stands for the service: its files, too, are read through git only.
    """
    source, deployed = tmp_path / "source", tmp_path / "deployed"
    shutil.copytree(ROOT / "workflow", source / "workflow")
    shutil.copytree(ROOT / "config", deployed / "config")
    shutil.copy(ROOT / "config/tables/table4.yaml", deployed / "config/tables/mine.yaml")
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"], ["tag", "v1"]):
        subprocess.run([*git, *words], cwd=source, check=True)
    path = f'gitfile("{source}", path="workflow/Snakefile", tag="v1")'
    outer(deployed, 'configfile: "config/config.yaml"\n', path)
    out = snakemake(deployed, "-n", "--quiet", "rules", "--", "results/mine.csv", PYTHONPATH=str(ROOT))
    assert re.search(r"^table +1$", out, re.MULTILINE)


@pytest.mark.parametrize("profile", ["demo", "small"])
def test_a_preset_is_found_from_another_folder(tmp_path, profile):
    words = ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles" / profile)]
    out = snakemake(tmp_path, *words, "-n", "--quiet", "rules")
    assert re.search(r"^all +1$", out, re.MULTILINE)
    results = raw_config(profile)["pathvars"]["results"]
    snakemake(tmp_path, *words, "-n", "--quiet", "rules", "--", f"{results}/table1.csv")


@pytest.mark.slow
def test_the_report_of_snakemake(tmp_path):
    """Its text and captions; of a result set that is made up, without the files in between."""
    results = tmp_path / "results/demo"
    for run in ("decm", "teacher", "digits-autoencoder", "digits-classifier"):
        (results / run / "base/0").mkdir(parents=True)
        (results / run / "base/0/train.jsonl").write_text('{"step": 1}\n')
    (results / "table4.csv").write_text("row,ours\ndecm,1.0\n")
    (results / "table4.md").write_text("| row |\n")
    words = ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(ROOT / "profiles/demo")]
    snakemake(tmp_path, *words, "--report", "report.html", "--", "results/demo/table4.csv")
    page = (tmp_path / "report.html").read_text()
    for text in (
        "reproduced as one DAG",
        "table4: one line for each row",
        "Log of the training decm/base, seed 0",
    ):
        assert text in page


def test_the_catalogue_finds_what_it_expects():
    """https://snakemake.github.io/snakemake-workflow-catalog: standardised usage."""
    for name in ("workflow/Snakefile", "config/README.md", "config/config.yaml", "README.md", "LICENSE"):
        assert (ROOT / name).is_file()
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
