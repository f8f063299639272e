"""Fixtures that several areas share."""

from __future__ import annotations

import os

# Two threads of torch on a busy machine wait for each other; children inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from configs import make_plan, raw_config
from stages_world import World

from fewstep.plan import Plan


@pytest.fixture(scope="session")
def paper_plan() -> Plan:
    return make_plan(raw_config())


@pytest.fixture(scope="session")
def demo_plan() -> Plan:
    return make_plan(raw_config("demo"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, _one_thread) -> World:
    """Read only: tests write into folders of their own."""
    result = World(tmp_path_factory.mktemp("world"))
    result.build()
    return result
