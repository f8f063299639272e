"""What the README tells people to type exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from configs import ROOT, make_plan, raw_config
from house_sources import modules, text


@pytest.fixture(scope="module")
def readme() -> str:
    return text(Path("README.md"))


def commands(readme: str) -> list[list[str]]:
    """Calls of snakemake, from code blocks and from inline code."""
    found = []
    for code in re.findall(r"```(?:bash|console|sh)\n(.*?)```|`(snakemake [^`]+)`", readme, re.DOTALL):
        for line in "\n".join(code).splitlines():
            for part in line.split("&&"):
                if part.strip().startswith("snakemake "):
                    found.append(shlex.split(part, comments=True)[1:])
    return found


def test_links(readme):
    links = re.findall(r"\]\(([^)#\s]+)\)", readme)
    assert len(links) > 5
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert not missing


def test_stages_exist(readme):
    for name in re.findall(r"python -m (fewstep[\w.]*)", readme):
        if not name.endswith("."):
            assert name in modules()


def test_snakemake_calls(readme):
    """Profiles are there, and targets are files that the plan can make."""
    calls = [call for call in commands(readme) if "--profile" in call]
    assert len(calls) >= 3
    for call in calls:
        profile = call[call.index("--profile") + 1]
        assert (ROOT / profile / "config.yaml").is_file(), profile
        preset = Path(profile).name
        plan = make_plan(raw_config(preset if (ROOT / f"config/{preset}.yaml").is_file() else None))
        made = {file for name in [*plan.config.tables, "claims", "report"] for file in plan.parts_of(name)}
        made |= {plan.metrics(key) for table in plan.tables.values() for key in table.all_cells}
        made |= {plan.path("<results>/plan.csv"), plan.path("<results>/bench.csv")}
        made |= {plan.model(run.method, run.variant) for run in plan.runs.values()}
        for word in call:
            if word.startswith("results/"):
                assert word in made, f"snakemake {' '.join(call)}"


def test_tests_and_package_can_be_installed_as_told(readme):
    extras = set(re.findall(r"\.\[(\w+)\]", readme))
    assert extras <= {"dev"}


def test_nothing_is_left_to_fill_in(readme):
    assert not re.findall(r"@[A-Z][A-Z0-9_]*@", readme)
