"""What several areas of the tests share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fewstep.config.base import merge, read_yaml
from fewstep.plan import Plan

ROOT = Path(__file__).parent.parent


def raw_config(preset: str | None = None) -> dict[str, Any]:
    """config/config.yaml as Snakemake would hand it over, with a preset laid over it."""
    raw = read_yaml(ROOT / "config/config.yaml")
    return merge(raw, read_yaml(ROOT / f"config/{preset}.yaml")) if preset else raw


def make_plan(raw: dict[str, Any]) -> Plan:
    return Plan(copy.deepcopy(raw), ROOT)


@pytest.fixture(scope="session")
def paper_plan() -> Plan:
    return make_plan(raw_config())


@pytest.fixture(scope="session")
def demo_plan() -> Plan:
    return make_plan(raw_config("demo"))
