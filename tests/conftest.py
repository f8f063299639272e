"""Fixtures that several areas share."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config

from fewstep.plan import Plan


@pytest.fixture(scope="session")
def paper_plan() -> Plan:
    return make_plan(raw_config())


@pytest.fixture(scope="session")
def demo_plan() -> Plan:
    return make_plan(raw_config("demo"))
