"""Whether jobs end within the time that the profile gives them, by the rates of the plan."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

from ..config.specs import CostsSpec
from .machine import Check
from .profile import MOST_RETRIES, Profile, evaluate, gpus_of, gpus_of_job
from .schedule import Task, critical_path, finish

GPUS = (8, 64, 512)
"""For which the plan tells when all is done."""
RESUMED = {"train", "sample"}
"""Rules whose next attempt goes on where the last one was stopped."""


def check_durations(profile: Profile, lines: Sequence[dict[str, str]] | str) -> Iterator[Check]:
    """A check for each rule whose longest job does not end, or one that all do.

    Args:
        lines: of results/plan.csv; or why there are none.
    """
    if isinstance(lines, str):
        yield Check("warn", "durations", f"not checked: {lines}")
        return
    good = True
    for line in lines:
        rule = line["name"]
        minutes = planned_minutes(profile, line)
        given = [profile.resources(rule, attempt).get("runtime") for attempt in attempts(profile, rule)]
        if minutes is None or None in given:
            continue
        limits = [limit for limit in given if isinstance(limit, int)]
        if minutes <= sum(limits):
            continue
        good = False
        text, key = (
            f"{rule}: the longest job takes {hours(minutes)} by the plan's rates",
            f"set-resources.{rule}.runtime",
        )
        if rule in RESUMED:
            allowed = f"{len(limits)} x {hours(limits[-1])}"
            remedy = f"set retries to {math.ceil(minutes / limits[-1]) - 1} or more, or {key} to more"
        else:
            allowed, remedy = hours(limits[-1]), f"set {key} to {math.ceil(minutes)} or more"
        yield Check("warn", "durations", f"{text}, runtime allows {allowed}: {remedy}")
    if good:
        yield Check("ok", "durations", "every job ends within runtime and retries by the plan's rates")


def attempts(profile: Profile, rule: str) -> range:
    """Those whose time counts: all of a rule that resumes, otherwise the last."""
    if rule in RESUMED:
        return range(1, profile.retries + 2)
    last = 1 + min(MOST_RETRIES, profile.retries)
    return range(last, last + 1)


def planned_minutes(profile: Profile, line: dict[str, str]) -> float | None:
    """Of the longest job of a rule on the GPUs that the profile gives it; None if the plan has no time."""
    if not line["longest"]:
        return None
    if line["unit"] != "GPU-hours":
        return float(line["longest"]) / 60
    return 60 * float(line["longest"]) / gpus_of_job(profile.resources(line["name"]))


def tasks(spec: CostsSpec, seconds: Sequence[float], profile: Profile, devices: int) -> list[Task]:
    """The jobs of a plan, as the profile gives them devices and time.

    Where something runs on a GPU, GPUs are the devices, and what runs without takes none; else cores are.

    Args:
        seconds: of a job of each line of ``spec``, on one device.
        devices: that there are; a job that asks for more gets these.
    """
    gpus = any(line.device == "gpu" for line in spec.lines)
    kinds = []
    for line, alone in zip(spec.lines, seconds, strict=True):
        resources = profile.resources(line.rule)
        limit = resources.get("runtime")
        wide = min(devices, gpus_of_job(resources)) if line.device == "gpu" else 0 if gpus else 1
        time = min(alone, spec.start) + max(0.0, alone - spec.start) / max(1, wide)
        if isinstance(limit, int) and line.rule in RESUMED:
            time += spec.restart * (math.ceil(time / (60 * limit)) - 1) if time else 0
        kinds.append((time, wide))
    return [Task(*kinds[job.line], job.after) for job in spec.jobs]


def days(spec: CostsSpec, seconds: Sequence[float], profile: Profile) -> dict[str, float]:
    """Days until all is done, by what there is to do it on; arguments as for `tasks`."""
    gpus = any(line.device == "gpu" for line in spec.lines)
    limit = gpus_of({name: evaluate(name, value, {}) for name, value in profile.limits.items()})
    unit, counts = (
        ("GPUs", (limit,) if limit else GPUS) if gpus else ("cores", (profile.number("cores", 1) or 1,))
    )
    found = {f"{count} {unit}": finish(tasks(spec, seconds, profile, count), count) for count in counts}
    found[f"any number of {unit}"] = critical_path(tasks(spec, seconds, profile, sys.maxsize))
    return {name: time / 86400 for name, time in found.items()}


def hours(minutes: float) -> str:
    return f"{minutes:.0f} minutes" if minutes < 600 else f"{minutes / 60:.0f} hours"
