"""Fixtures that several areas share."""

from __future__ import annotations

import os

# Two threads of torch on a busy machine wait for each other; children inherit this.
os.environ["OMP_NUM_THREADS"] = "1"

import campaign
import pytest
import torch
from configs import make_plan, raw_config
from tiny_pipeline import TinyPipeline

from fewstep.plan import Plan


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the campaign of faults has counted, in a run in one process (-n 0)."""
    for title, counts in (("damaged files", campaign.damage), ("kills", campaign.kills)):
        if counts:
            terminalreporter.section(f"faults: {title}", sep="-")
            for name, count in sorted(counts.items()):
                terminalreporter.write_line(f"{name}: {count}")


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
def pipeline(tmp_path_factory: pytest.TempPathFactory, _one_thread) -> TinyPipeline:
    """Every stage run once, for real. Read only: tests write into folders of their own."""
    result = TinyPipeline(tmp_path_factory.mktemp("pipeline"))
    result.build()
    return result
