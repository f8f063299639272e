"""The conda environments: their pins are pyproject's, and each holds what its rules need."""

from __future__ import annotations

import re
import sys
import tomllib

import pytest
import yaml
from configs import ROOT
from house_sources import reached, theirs
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVS = sorted((ROOT / "envs").glob("*.yaml"))
# Distribution -> module, where they differ.
MODULES = {
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
    "torch-fidelity": "torch_fidelity",
    "huggingface_hub": "huggingface_hub",
    "snakemake-executor-plugin-slurm": "snakemake_executor_plugin_slurm",
}
# Modules that come with another distribution.
COMES_WITH = {"markupsafe": "jinja2"}


def pins(lines: list[str]) -> dict[str, SpecifierSet]:
    found = [Requirement(line) for line in lines]
    assert len({each.name for each in found}) == len(found)
    return {each.name: each.specifier for each in found}


def env_of(path) -> tuple[str, dict[str, SpecifierSet]]:
    """Python's pin and pip's."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]
    python = next(entry for entry in entries if isinstance(entry, str) and entry.startswith("python"))
    return python, pins(next(entry for entry in entries if isinstance(entry, dict))["pip"])


OURS = pins(PROJECT["dependencies"]) | {
    name: pin for extra in PROJECT["optional-dependencies"].values() for name, pin in pins(extra).items()
}


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.name)
def test_pins_agree(path):
    python, found = env_of(path)
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["requires-python"])
    assert {name: str(pin) for name, pin in found.items()} == {name: str(OURS.get(name)) for name in found}


def test_every_dependency_lies_in_an_environment():
    held = {name for path in ENVS for name in env_of(path)[1]}
    assert not pins(PROJECT["dependencies"]).keys() - held


def rules() -> list[tuple[str, str, str]]:
    """Rule, environment, stage."""
    found = []
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^(?=rule )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            name = re.match(r"rule (\w+):", block)[1]
            env = re.search(r'conda:\s+"([^"]+)"', block)
            stage = re.search(r"\bfewstep\.(?!launch)(\w+)", block)
            if stage:
                found.append((name, env[1] if env else "", stage[1]))
    return found


def test_rules_are_found():
    assert len(rules()) >= 12


@pytest.mark.parametrize(("rule", "env", "stage"), rules())
def test_the_environment_of_a_rule_holds_what_its_stage_imports(rule, env, stage):
    path = ROOT / "workflow/rules" / env
    assert env and path.is_file()
    _, held = env_of(path)
    available = {MODULES.get(name, name) for name in held}
    needed = {COMES_WITH.get(name, name) for module in reached(f"fewstep.{stage}") for name in theirs(module)}
    missing = needed - available - sys.stdlib_module_names
    assert not missing, f"{stage} needs {missing}, which {path.name} lacks"


def test_every_environment_is_used():
    used = {(ROOT / "workflow/rules" / env).resolve() for _, env, _ in rules()}
    assert used == set(ENVS)
