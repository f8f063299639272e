"""What the command line asks for: whether it can be made, and what was meant where it cannot."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING

from ..config.base import ConfigError, nearest
from . import paths
from .jobs import maker

if TYPE_CHECKING:
    from . import Plan

SPEC_OF = {"manifest": "encode", "figure": "table", "images": "sample", "pictures": "sample"}
"""Stages that read the spec of another."""
NUMBERS = {"seed": "0, 1, 2 and so on", "steps": "1, 2, 3 and so on"}
"""Wildcard of a run's file -> what it may be."""


def check(plan: Plan, target: str) -> None:
    """Refuse a file that a rule would make, and its stage would refuse.

    Raises:
        ConfigError: a line for each mistake, naming the target, what is wrong and what to do.
    """
    try:
        job = maker(plan, target)
    except ConfigError:  # a log, a benchmark or a spec
        with _named(target):
            plan.refuse_unmet(run for run in plan.unmet if re.search(rf"/{re.escape(run)}[/.]", target))
        return
    if job.stage == "encode":
        shards = plan.parts.latents[job.key["latents"]].shards
        if int(job.key["shard"]) >= shards:
            raise ConfigError(f"target {target}: shard {job.key['shard']}, but there are {shards}, from 0 on")
    if job.stage in ("images", "pictures") and plan.image_sets[job.key["images"]].uint8 == "none":
        raise ConfigError(f"target {target}: {job.key['images']}: these samples are points, not images")
    with _named(target):
        plan.check_needs([target])
    stage = SPEC_OF.get(job.stage, job.stage)
    try:
        plan.spec(stage, paths.SPECS[stage].format(**job.key))
    except ConfigError as error:
        raise ConfigError(f"target {target}: {str(error).partition(': ')[2]}") from None


@contextmanager
def _named(target: str) -> Iterator[None]:
    """Each line of a ConfigError of the block begins with the target."""
    try:
        yield
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"target {target}: {line}" for line in lines)) from None


def explain(plan: Plan, target: str, rules: Iterable[str]) -> str:
    """Why nothing makes a target, and the nearest that can be made, in a line.

    Args:
        rules: the names of rules that are targets.
    """
    found = _wrong_part(plan, target)
    if found is None:
        near = _nearest(plan, target, [*rules])
        example = plan.file("csv", table=next(iter(plan.config.tables)))
        other = f"; targets are files such as {example}, and {', '.join(sorted(rules))}"
        found = f"no rule makes it{f'; did you mean {near!r}?' if near else other}"
    return f"target {target}: {found}"


def _wrong_part(plan: Plan, target: str) -> str | None:
    """What is wrong with the path of a run's file; None for other files."""
    anything = dict.fromkeys(plan.constraints, r"[^/]+") | {"run": r"[^/]+/[^/]+", "steps": r"[^/-]*"}
    for template in (template for template in paths.FILES.values() if "{run}" in template):
        match = paths.pattern(plan.template(template), anything).fullmatch(target)
        if match is None:
            continue
        for wildcard, value in match.groupdict().items():
            if re.fullmatch(plan.constraints[wildcard], value):
                continue
            if wildcard in NUMBERS:
                return f"{wildcard} must be {NUMBERS[wildcard]}, not {value!r}"
            if wildcard == "run":
                method, _, variant = value.partition("/")
                if method not in plan.config.methods:
                    return f"unknown method {method!r}{nearest(method, plan.config.methods)}"
                variants = [run.variant for run in plan.runs.values() if run.method == method]
                return f"unknown variant {variant!r} of {method}{nearest(variant, variants)}"
            return f"unknown {wildcard} {value!r}{nearest(value, plan.names[wildcard])}"
        if plan.runs[match["run"]].maker != "train" and match["seed"] != "0":
            return "weights that are not trained here have no seeds; use 0"
    return None


def _nearest(plan: Plan, target: str, rules: list[str]) -> str | None:
    """The target that is nearest to a name: by the file's own name, or by all of its path."""
    # Of equal names the first: a table comes before a file of the same stem.
    files = [plan.parts_of(table)[0] for table in [*plan.config.tables, *plan.names["claims"], "report"]]
    files += [plan.path(f"<results>/{stem}.csv") for stem in ("plan", "bench")]
    files += [plan.file("record", asset=name) for name in plan.config.assets]
    files += [plan.file("manifest", latents=name) for name in plan.parts.latents]
    files += [plan.file("model", run=name, seed=0) for name in plan.runs]
    files += [plan.metrics(key) for table in plan.tables.values() for key in table.all_cells]
    called = Counter(PurePath(file).name for file in dict.fromkeys(files))
    short = {PurePath(file).name: file for file in files if called[PurePath(file).name] == 1}
    stems = {PurePath(name).stem: file for name, file in short.items()}
    path = PurePath(target)
    for name, known in ((path.name, short), (path.stem, stems)):
        if name in known:
            return known[name]
    for name, candidates in ((target, [*rules, *files]), (path.name, [*short, *stems])):
        near = re.search(r"did you mean '(.*)'", nearest(name, candidates, ""))
        if near:
            return short.get(near[1], stems.get(near[1], near[1]))
    return None
