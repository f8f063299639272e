"""Configurations for tests: as Snakemake would hand them over."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from fewstep.config.base import merge, read_yaml
from fewstep.plan import Plan

ROOT = Path(__file__).parent.parent


def raw_config(preset: str | None = None) -> dict[str, Any]:
    """config/config.yaml, with the files of a preset's profile laid over it."""
    raw = read_yaml(ROOT / "config/config.yaml")
    for file in read_yaml(ROOT / f"profiles/{preset}/config.yaml")["configfile"] if preset else []:
        raw = merge(raw, read_yaml(ROOT / file))
    return raw


def make_plan(raw: dict[str, Any]) -> Plan:
    return Plan(copy.deepcopy(raw), ROOT)
