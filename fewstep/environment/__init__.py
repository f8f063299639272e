"""Checks of the machine, the profile and the cluster before anything is run; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..config.base import complete, merge, read_yaml
from ..plan import Plan
from . import cluster, durations, machine
from .machine import Check
from .profile import MOST_RETRIES, Profile, profiles_of

__all__ = ["MOST_RETRIES", "Check", "Profile", "examine", "profiles_of"]


def examine(folders: Sequence[Path], repository: Path = Path()) -> Iterator[Check]:
    """All checks of the profiles in ``folders``, in the order of a reader's interest.

    Args:
        folders: profiles, of which later ones replace entries of earlier ones.
        repository: folder that holds config/.
    """
    try:
        profile = Profile.read(folders)
        given: dict[str, Any] = {}
        for preset in profile.configfiles:
            given = merge(given, read_yaml(Path(preset)))
        plan = Plan(complete(given, repository), repository)
    except ConfigError as error:
        yield Check("fail", "configuration", str(error))
        return
    yield Check("ok", "configuration", f"{' + '.join(map(str, folders))} asks for {', '.join(plan.wanted)}")
    if unknown := profile.unknown():
        yield Check(
            "warn", "profile", f"not checked, as only Snakemake can evaluate it: {', '.join(unknown)}"
        )
    on_slurm = profile.text("executor") == "slurm"
    yield machine.packages()
    costs = machine.costs(plan)
    yield from machine.disk(plan, costs)
    yield machine.results_folder(plan, on_slurm)
    yield from machine.assets(plan)
    yield from machine.copied(plan)
    if on_slurm:
        yield from durations.check_durations(profile, costs)
        yield from cluster.check_cluster(profile, plan)
    else:
        yield machine.gpus(profile)
