"""What lies where, and what must not stand in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from configs import ROOT
from source_files import text, tracked

from fewstep.config.base import read_yaml

TOP = {"Snakefile", "README.md", "workflow", "config", "envs", "fewstep", "profiles", "tests"}
TOP |= {"pyproject.toml", "LICENSE", "CHANGELOG.md", "CITATION.cff", ".ci", ".github"}
TOP |= {".gitignore", ".pre-commit-config.yaml", ".snakemake-workflow-catalog.yml"}
BINARY = {".png", ".npz", ".pt", ".tar"}


def sources(*suffixes: str) -> list[Path]:
    return [path for path in tracked() if path.suffix in suffixes or path.name == "Snakefile"]


def test_nothing_else_at_the_top():
    assert {path.parts[0] for path in tracked()} <= TOP


def test_rules_name_no_method_table_or_dataset(paper_plan, demo_plan):
    """Rules are generic: a new table or method is configuration."""
    names: set[str] = set()
    for plan in (paper_plan, demo_plan):
        config, parts = plan.config, plan.parts
        for part in (config.assets, config.methods, config.tables, parts.datasets, parts.tokenizers):
            names |= part.keys()
        for part in (parts.latents, parts.backbones, parts.samplers, parts.protocols, parts.recipes):
            names |= part.keys()
    # "teacher" is a role of train's inputs, "common" a file of rules, and "samples" and "get" are words.
    names -= {"teacher", "common", "samples", "get"}
    assert {"decm", "table1", "imagenet256", "digits"} <= names
    word = re.compile(
        rf"(?<![\w-])({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})(?![\w-])"
    )
    rules = [path for path in tracked() if path.match("workflow/rules/*.smk")]
    assert len(rules) >= 5
    for path in rules:
        assert not word.findall(text(path)), path


def test_no_run_or_script_blocks():
    """A run block starts a whole Snakemake, a script hides its inputs."""
    for path in sources(".smk"):
        assert not re.search(r"^\s+(run|script|notebook):", text(path), re.MULTILINE), path


def test_no_hardware_in_the_configuration():
    for path in tracked():
        if path.parts[0] == "config":
            assert not re.search(r"\b(gpus?|cuda|slurm|partition|threads|processes):", text(path)), path


def test_no_paths_of_one_machine_and_no_loose_ends():
    patterns = {
        "a path of one machine": r"""(?<![\w.:/-])/(home|Users|root|work|tmp|mnt|scratch)/""",
        "a path beside the repository": r"\.\./" + r"(shared|\.\./\.\./\.\.)\b",
        "a loose end": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
        "a number without a meaning here": r"\b([Ii]ssue|PR|[Pp]ull request) ?#?\d",
    }
    for path in tracked():
        if path.suffix in BINARY:
            continue
        for what, pattern in patterns.items():
            found = re.search(pattern, text(path))
            assert not found, f"{path}: {what}: {found and found.group()}"


def test_tests_have_unique_names_and_no_packages():
    tests = [path for path in tracked() if path.parts[0] == "tests" and path.suffix == ".py"]
    assert not [path for path in tests if path.name == "__init__.py"]
    names = [path.name for path in tests if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_profiles():
    """Snakemake lays profiles/default under every other profile, unasked."""
    found = {path.name for path in (ROOT / "profiles").iterdir()}
    assert found == {"demo", "local", "own", "slurm", "slurm-multinode", "small"}
    for profile in ("demo", "own", "small"):
        folder = ROOT / "profiles" / profile
        preset = folder / read_yaml(folder / "config.yaml")["configfile"]
        assert preset.resolve() == ROOT / f"config/{profile}.yaml"


def test_every_configuration_file_is_used(paper_plan):
    there = {str(path) for path in tracked() if path.parts[0] == "config"}
    files = paper_plan.config.root.files
    used = {"config/README.md", "config/config.yaml", files.assets, files.settings, files.claims, files.costs}
    used |= {f"{files.methods}/{path.name}" for path in (ROOT / files.methods).glob("*.yaml")}
    used |= {f"{files.tables}/{name}.yaml" for name in paper_plan.config.tables}
    used |= {
        "config/demo.yaml",
        "config/small.yaml",
        "config/reduced.yaml",
        "config/own.yaml",
    }  # see test_profiles
    used |= {"config/own-pixels.yaml", "config/own-latents.yaml"}  # see test_plan_own
    assert there == used


@pytest.mark.parametrize("path", [path for path in tracked() if path.match("config/**/*.yaml")], ids=str)
def test_editors_find_the_schema(path):
    """The first line names the schema, relative to the file."""
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text(path))
    assert found, path
    assert (ROOT / path.parent / found[1]).is_file()
