"""Which jobs lead to some files: the DAG, walked from the files through the inputs of their jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.base import ConfigError
from . import paths

if TYPE_CHECKING:
    from . import Plan

MAKERS = {
    "record": "fetch",
    "shard": "encode",
    "manifest": "manifest",
    "model": "train",
    "curve": "train",
    "images": "sample",
    "metrics": "score",
    "statistics": "reference",
    "csv": "table",
    "markdown": "table",
    "png": "figure",
    "claims": "claims",
    "claims_markdown": "claims",
    "page": "report",
}
"""Kind of file -> the stage that makes it; some are made otherwise, see `maker`."""


@dataclass(frozen=True)
class Job:
    stage: str
    key: dict[str, str]
    """The wildcards of its output."""


def dependencies(plan: Plan, files: Iterable[str]) -> list[Job]:
    """Every job behind some files, each once; the small ones that write specs are left out."""
    patterns = {
        kind: paths.pattern(plan.path(re.sub(r"[{}]", r"\g<0>\g<0>", template)), plan.constraints)
        for kind, template in paths.FILES.items()
    }
    found: dict[tuple[object, ...], Job] = {}
    seen: set[str] = set()
    queue = list(files)
    for file in queue:
        if file in seen:
            continue
        seen.add(file)
        job = maker(plan, patterns, file)
        name = (job.stage, *sorted(job.key.items()))
        if name not in found:
            found[name] = job
            inputs = plan.inputs(job.stage, job.key)
            queue += [each for option, group in inputs.items() if option != "spec" for each in group]
    return list(found.values())


def maker(plan: Plan, patterns: dict[str, re.Pattern[str]], file: str) -> Job:
    """The job that makes a file.

    Raises:
        ConfigError: no rule makes it.
    """
    for kind, pattern in patterns.items():
        match = pattern.fullmatch(file)
        if match is None:
            continue
        key, stage = match.groupdict(), MAKERS[kind]
        if stage == "train" and plan.runs[key["run"]].adopted:
            stage = "adopt"
        if kind == "csv" and plan.tables[key["table"]].table.kind != "table":
            stage = "figure"
        return Job(stage, key)
    raise ConfigError(f"workflow: no rule makes {file}")
