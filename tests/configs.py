"""Configurations for tests: as Snakemake would hand them over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fewstep.config.base import complete, read_yaml
from fewstep.plan import Plan, Run
from fewstep.plan.marks import hyperparameter_sources, values

ROOT = Path(__file__).parent.parent


def raw_config(preset: str | None = None) -> dict[str, Any]:
    """config/config.yaml, with a preset laid over it."""
    return complete(read_yaml(ROOT / f"config/{preset}.yaml") if preset else {}, ROOT)


def unmarked(run: Run) -> list[str]:
    """The hyper-parameters whose source is not known."""
    return sorted({key for key, _ in values(run)} - {entry.key for entry in hyperparameter_sources(run)})


def make_plan(raw: dict[str, Any]) -> Plan:
    return Plan(copy.deepcopy(raw), ROOT)
