"""Checks of the machine, the profile and the cluster before anything is run; torch is not needed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..config.base import complete, merge, read_yaml
from ..plan import Plan
from . import cluster, machine
from .machine import Check

__all__ = ["Check", "examine", "profiles_of"]


def profiles_of(words: list[str], places: Sequence[Path]) -> list[Path]:
    """Profiles that a call of snakemake names, those that replace others last; none if it names none.

    Each is looked for in ``places``: Snakemake has left the folder it was started in for that of --directory.
    """
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_argument("--profile", action="append", default=[])
    arguments.add_argument("--workflow-profile", action="append", default=[])
    given, _ = arguments.parse_known_args(words)
    named = [Path(name) for name in [*given.profile, *given.workflow_profile]]
    return [next((place / name for place in places if (place / name).exists()), name) for name in named]


def read_profiles(folders: Sequence[Path]) -> dict[str, Any]:
    """Entries of profiles, each replacing those of the ones before it, as in Snakemake.

    A single configfile is relative to its profile, as in Snakemake too; several are relative to the working
    directory.
    """
    profile: dict[str, Any] = {}
    for folder in folders:
        entries = read_yaml(folder / "config.yaml")
        preset = entries.get("configfile", [])
        if isinstance(preset, str):
            entries["configfile"] = [folder / preset if (folder / preset).exists() else preset]
        profile |= entries
    return profile


def examine(folders: Sequence[Path], repository: Path = Path()) -> Iterator[Check]:
    """All checks of the profiles in ``folders``, in the order of a reader's interest.

    Args:
        folders: profiles, of which later ones replace entries of earlier ones.
        repository: folder that holds config/.
    """
    try:
        profile = read_profiles(folders)
        given: dict[str, Any] = {}
        for preset in profile.get("configfile", []):
            given = merge(given, read_yaml(Path(preset)))
        plan = Plan(complete(given, repository), repository)
    except ConfigError as error:
        yield Check("fail", "configuration", str(error))
        return
    yield Check("ok", "configuration", f"{' + '.join(map(str, folders))} asks for {', '.join(plan.wanted)}")
    on_slurm = profile.get("executor") == "slurm"
    yield machine.packages()
    yield from machine.disk(plan)
    yield machine.results_folder(plan, on_slurm)
    yield from machine.assets(plan)
    if on_slurm:
        yield from cluster.check_cluster(profile, plan)
    else:
        yield machine.gpus(profile)
