"""A real Slurm cluster of two nodes on this machine, and a small result made on it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_bench import Bench

SCRIPT = str(Path(__file__).parent / "cluster.sh")
NEEDED = ["slurmctld", "slurmd", "munged", "srun"]
CELL = "results/demo/decm/base/0/mix-4/digits.json"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """Folder of the running cluster."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if missing or os.geteuid() != 0:
        why = f"not installed: {', '.join(missing)}" if missing else "not root"
        reason = f"the test cluster needs root and the Debian packages slurm-wlm, munge ({why})"
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    # Below /tmp: the path of a socket is at most 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    # Below the ephemeral ports; two sessions on one machine do not meet.
    port = str(random.randrange(10000, 19000, 100))
    try:
        subprocess.run(
            [SCRIPT, "start", folder], check=True, timeout=120, env={**os.environ, "BASE_PORT": port}
        )
        yield folder
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm(cluster: Path) -> dict[str, str]:
    """The environment of a client of the cluster, without the variables of a job around these tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    path = f"{cluster}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "SLURM_CONF": f"{cluster}/slurm.conf", "PATH": path}


@pytest.fixture(scope="session")
def built(slurm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One cell of the miniature, from data to score, made on the cluster. Read only."""
    bench = Bench(tmp_path_factory.mktemp("built"), slurm)
    with bench.snakemake(CELL) as run:
        run.finish()
    return bench


@pytest.fixture
def bench(built: Bench, slurm: dict[str, str], tmp_path: Path) -> Bench:
    """A copy of the above to work in."""
    shutil.copytree(built.folder, tmp_path / "work", ignore=shutil.ignore_patterns("snakemake.out"))
    return Bench(tmp_path / "work", slurm)
