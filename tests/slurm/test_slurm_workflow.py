"""The shipped profiles on a real Slurm: table 1, job arrays, overlays."""

from __future__ import annotations

import csv
import re
from datetime import datetime

import pytest
from slurm_cluster import note
from slurm_workdir import COMPUTED, TABLE, Workdir, profile

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_table_1_from_data_to_csv(built: Workdir):
    with (built.folder / TABLE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["row"] for row in rows if row["ours"]} == set(COMPUTED)
    assert not list(built.results.rglob("state-*")), "training state is left behind"
    for rule in ("encode", "manifest", "train", "sample", "reference", "score"):
        jobs = built.jobs(rule)
        assert jobs and built.jobs(rule, "COMPLETED") == jobs, rule
        assert list((built.folder / "logs/slurm").glob(f"rule_{rule}/**/*.log")), rule
    for job in built.jobs("score"):
        shown = dict(re.findall(r"(\w+Time)=(\S+)", built.ask("scontrol", "show", "job", job)))
        begin, end = (datetime.fromisoformat(shown[name]) for name in ("SubmitTime", "EndTime"))
        note("round trip of a job of the rule score", f"{(end - begin).seconds} s")


def test_shards_are_one_array(built: Workdir):
    """One submission for all shards of a set; a single one stays an ordinary job."""
    tasks = [job.split("_") for job in built.jobs("encode")]
    assert sorted(len(task) for task in tasks) == [1, 2, 2]
    number = max(task[0] for task in tasks if len(task) == 2)
    assert sorted(task[1] for task in tasks if task[0] == number) == ["1", "2"]
    # All commands of an array are one word of a shell's; Linux ends words at 128 KiB, and the plugin's
    # way out then runs the first command in every task.
    script = built.ask("scontrol", "write", "batch_script", number, "-")
    (payload,) = re.findall(r"--slurm-jobstep-array-execs=(\S+)", script)
    most = profile("slurm")["slurm-array-limit"]
    assert len(script) + (most - 2) * len(payload) < 100_000
