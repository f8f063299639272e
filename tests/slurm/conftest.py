"""A Slurm cluster on this machine, and the reduced table 1 made on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from slurm_cluster import FIGURES, Cluster, why_not
from slurm_workdir import TABLE, Workdir


@pytest.fixture(scope="session")
def new_cluster() -> Iterator[Callable[[], Cluster]]:
    """Starts a cluster that lives as long as the tests."""
    if reason := why_not():
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with ExitStack() as stack:

        def start() -> Cluster:
            cluster = Cluster()
            stack.callback(cluster.stop)
            cluster.start()
            return cluster

        yield start


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[[], Cluster]) -> Cluster:
    return new_cluster()


@pytest.fixture(scope="session")
def built(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """The reduced table 1, from data to csv, made on the cluster without a fault. Read only."""
    workdir = Workdir(tmp_path_factory.mktemp("built"), cluster)
    with workdir.snakemake(TABLE) as run:
        run.finish()
    return workdir


@pytest.fixture
def workdir(built: Workdir, cluster: Cluster, tmp_path: Path) -> Workdir:
    """A copy to work in, with one model still to be trained."""
    return built.copy(tmp_path / "work", cluster)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("Slurm")
    for what, figures in FIGURES.items():
        terminalreporter.write_line(f"{what}: {', '.join(figures)}")
