"""How a stage is started, without a cluster."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT
from slurm_workdir import eventually

from fewstep import launch

STAGE = ["fewstep.train", "--spec", "s.json"]


def words(*arguments: str) -> list[str]:
    return launch.command_line(launch.parse([*arguments, *STAGE]))


@pytest.mark.parametrize("arguments", [[], ["--gpus", "1"], ["--gres", "gpu:h100:1", "--threads", "8"]])
def test_one_process_is_plain_python(arguments):
    assert words(*arguments) == [sys.executable, "-m", *STAGE]


@pytest.mark.parametrize("arguments", [["--gpus", "8"], ["--gres", "gpu:8"], ["--gres", "gpu:h100:8"]])
def test_one_node_is_torchrun(arguments):
    command = words(*arguments)
    assert command[2] == "torch.distributed.run"
    assert {"--nnodes=1", "--nproc-per-node=8", "--standalone"} <= set(command)
    assert command[-4:] == ["-m", *STAGE]


def test_several_nodes_are_one_torchrun_each(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    answers = {
        "squeue": "n[07-08]\n",
        "hostnames": "n07\nn08\n",
        "node": "NodeName=n07 NodeAddr=10.0.0.7 X=1",
    }
    monkeypatch.setattr(launch, "_output", lambda *asked: answers.get(asked[0]) or answers[asked[2]])
    command = words("--nodes", "2", "--gpus", "4", "--threads", "32")
    assert command[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    monkeypatch.setenv("SLURM_NODEID", "1")
    again = command[command.index("fewstep.launch") + 1 :]
    task = launch.command_line(launch.parse(again))
    address = {"--node-rank=1", "--master-addr=10.0.0.7", "--master-port=22345"}
    assert {"--nnodes=2", "--nproc-per-node=4", *address} <= set(task)
    assert task[-4:] == ["-m", *STAGE]


def test_missing_commands_of_slurm_are_one_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("SLURM_JOB_ID", "12345")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: squeue not found: several nodes need"):
        words("--nodes", "2")
    launch._ask_to_stop("11", "12", tmp_path / "lock")
    assert "scancel not found" in capfd.readouterr().err
    (tmp_path / "squeue").write_text("#!/bin/sh\necho Invalid job id >&2\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    with pytest.raises(SystemExit, match=r"^error: squeue -h -j 12345 .*: Invalid job id$"):
        words("--nodes", "2")


def test_several_nodes_need_a_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(SystemExit, match="2 nodes need a Slurm job"):
        words("--nodes", "2")


@pytest.mark.parametrize("gres", ["mps:4", "gpu:a:b:2", "shard"])
def test_other_resources_are_refused(gres, capsys):
    with pytest.raises(SystemExit):
        launch.parse(["--gres", gres, *STAGE])
    assert "expected gpu:COUNT or gpu:MODEL:COUNT" in capsys.readouterr().err


def test_gpus_in():
    found = [launch.gpus_in(text) for text in ("", "gpu", "gpu:2", "gpu:a100", "gpu:a100:4")]
    assert found == [0, 1, 2, 1, 4]


def holder(path: Path, module: str) -> subprocess.Popen:
    """The launcher with a stage that takes long: the lock must stay with the stage."""
    words = [sys.executable, "-m", "fewstep.launch", "--lock", str(path), module]
    process = subprocess.Popen(
        words, cwd=path.parent, env={**os.environ, "PYTHONPATH": f"{ROOT}:{path.parent}"}
    )
    eventually((path.parent / "running").exists, 60)
    return process


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    code = "import pathlib, time\npathlib.Path('running').touch()\ntime.sleep(60)\n"
    (tmp_path / "sleeper.py").write_text(code)
    return "sleeper"


def test_the_lock_belongs_to_the_stage(tmp_path, sleeper):
    process = holder(tmp_path / "lock", sleeper)
    with (tmp_path / "lock").open() as stream:
        with pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.send_signal(signal.SIGKILL)
        process.wait()
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("done", "same"), [(True, True), (True, False), (False, True)], ids=["done", "another spec", "not done"]
)
def test_the_newer_job_stops_the_older_and_waits(tmp_path, sleeper, monkeypatch, done, same):
    monkeypatch.setenv("SLURM_JOB_ID", "11")
    lock, out = tmp_path / "lock", tmp_path / "model.safetensors"
    process = holder(lock, sleeper)
    number, work = lock.read_text().split()
    assert number == "11"
    monkeypatch.setattr(launch, "_digest_of", lambda stage: work if same else "another")
    asked = []

    def scancel(words, **_):
        asked.append(words)
        if done:
            out.touch()
        process.kill()
        process.wait()

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(launch.subprocess, "run", scancel)
    finished = not launch.acquire_lock(lock, [*STAGE, "--out", str(out)], wait=0.05)
    assert finished == (done and same)
    assert asked == [["scancel", "11"]]
    assert lock.read_text() == f"12 {work if same else 'another'}"


def test_a_job_is_known_by_its_spec_and_the_files_that_it_reads(tmp_path):
    spec, model = tmp_path / "spec.json", tmp_path / "teacher.safetensors"
    spec.write_text('{"steps": 900}')
    model.write_bytes(b"1")
    stage = ["fewstep.train", "--spec", str(spec), "--teacher", str(model), "--out", str(tmp_path / "model")]
    first = launch._digest_of(stage)
    assert launch._digest_of(stage) == first
    spec.write_text('{"steps": 800}')
    second = launch._digest_of(stage)
    model.write_bytes(b"12")
    assert len({first, second, launch._digest_of(stage)}) == 3


def test_a_free_lock_does_not_look_at_the_output(tmp_path):
    out = tmp_path / "model.safetensors"
    out.touch()
    assert launch.acquire_lock(tmp_path / "lock", [*STAGE, "--out", str(out)])


def test_work_is_its_command_and_files_also_with_long_text(tmp_path):
    """A training may be given a spec as text, which is longer than a file's name can be."""
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    stage = ["fewstep.train", "--spec", str(spec), "--watch", "{" + "x" * 5000 + "}"]
    before = launch._digest_of(stage)
    assert before == launch._digest_of(stage) != launch._digest_of([*stage[:-1], "{}"])
    spec.write_text('{"a": 1}')
    assert launch._digest_of(stage) != before
