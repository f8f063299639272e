"""A stage that a preloaded process runs is the stage: its bytes, its refusals, its signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from child_processes import LIMIT
from configs import ROOT
from tiny_pipeline import Call, TinyPipeline, replaced

from fewstep.common import preloaded
from fewstep.common.provenance import sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ready() -> Iterator[dict[str, str]]:
    """The environment that leads to the process; afterwards it ends with the one that started it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        found = preloaded.start()
        yield {**os.environ, **found}
    process = preloaded._processes.pop()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(LIMIT) == 0
    assert not Path(found[preloaded.SOCKET]).parent.exists()


def launch(call: Call, environment: dict[str, str], *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "fewstep.launch", *words, f"fewstep.{call.stage}", *call.arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def is_a_copy(launcher: subprocess.Popen) -> bool:
    """Whether something else runs the stage: otherwise it has taken the launcher's place."""
    return b"fewstep.launch" in Path(f"/proc/{launcher.pid}/cmdline").read_bytes()


def waiting(call: Call, environment: dict[str, str], *words: str) -> tuple[subprocess.Popen, int]:
    """A stage that reads its spec from a pipe: the launcher, and the end to write to."""
    pipe = call.out.with_name("pipe")
    os.mkfifo(pipe)
    launcher = launch(replaced(call, "--spec", str(pipe)), environment, *words)
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        with suppress(OSError):  # nobody reads yet
            return launcher, os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.05)
    launcher.kill()
    raise TimeoutError(f"the stage did not read its spec within {LIMIT} s")


def test_the_same_bytes(pipeline: TinyPipeline, ready, tmp_path):
    """Of stages that run side by side, and of those that this process ran."""
    here = [pipeline.sample("cd", "cm-2"), pipeline.score("cd", "cm-2"), pipeline.reference()]
    copies = [pipeline.sample("cd", "cm-2", tmp_path), pipeline.score("cd", "cm-2", tmp_path)]
    copies.append(pipeline.reference(tmp_path))
    for launcher in [launch(call, ready) for call in copies]:
        launcher.communicate(timeout=LIMIT)
        assert launcher.returncode == 0
    for one, other in zip(here, copies, strict=True):
        assert one.out.read_bytes() == other.out.read_bytes()


def test_a_refusal(pipeline: TinyPipeline, ready, tmp_path):
    """The same message and status, and it is kept for a retry."""
    call = pipeline.score("cd", "cm-2", tmp_path)
    call = replaced(call, "--images", str(pipeline.reference().out))
    told = []
    for environment in (ready, dict(os.environ)):
        launcher = launch(call, environment)
        told.append((launcher.communicate(timeout=LIMIT)[1], launcher.returncode))
        kept = call.out.with_name(f"{call.out.name}.refused")
        assert kept.exists()
        kept.unlink()
    assert told[0] == told[1] and told[0][1] == 1
    assert "not a tar of images" in told[0][0]


def test_signals_reach_the_stage(pipeline: TinyPipeline, ready, tmp_path):
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready)
    assert is_a_copy(launcher)
    launcher.terminate()
    launcher.communicate(timeout=LIMIT)
    os.close(end)
    assert launcher.returncode == 128 + signal.SIGTERM


def test_a_killed_launcher_takes_the_stage_along(pipeline: TinyPipeline, ready, tmp_path):
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready)
    launcher.kill()
    launcher.communicate(timeout=LIMIT)
    limit = time.monotonic() + LIMIT
    with pytest.raises(BrokenPipeError):
        while time.monotonic() < limit:
            os.write(end, b" ")
            time.sleep(0.05)
    os.close(end)


def test_a_stage_killed_is_a_launcher_killed(pipeline: TinyPipeline, ready, tmp_path):
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready)
    server = preloaded._processes[-1].pid
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    launcher.communicate(timeout=LIMIT)
    os.close(end)
    assert launcher.returncode == -signal.SIGKILL


@pytest.mark.parametrize("words", [["--threads", "2"], ["--gpus", "1"]])
def test_what_a_copy_cannot_be(pipeline: TinyPipeline, ready, tmp_path, words):
    """Another number of threads, a GPU: the stage starts by itself."""
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready, *words)
    assert not is_a_copy(launcher)
    launcher.kill()
    launcher.communicate(timeout=LIMIT)
    os.close(end)


def test_other_code_and_other_stages_start_by_themselves(ready, monkeypatch):
    monkeypatch.setenv(preloaded.SOCKET, ready[preloaded.SOCKET])
    code = sources()
    preloaded.run("fewstep.score", [], [*code[:-1], "edited"])
    preloaded.run("fewstep.train", [], code)
    preloaded.run("fewstep.score", ["-" * preloaded.MESSAGE], code)
    monkeypatch.setenv(preloaded.SOCKET, "nowhere")
    preloaded.run("fewstep.score", [], code)
    monkeypatch.delenv(preloaded.SOCKET)
    preloaded.run("fewstep.score", [], code)


def test_a_folder_without_sockets(tmp_path, monkeypatch):
    """A path of more than 107 bytes: stages start by themselves."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert preloaded.start() == {}
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("profile", "spec"),
    [("demo", "results/demo/specs/fetch/digits.json"), ("slurm", "results/specs/reference/common.json")],
)
def test_only_a_workflow_on_one_machine_starts_it(tmp_path, profile, spec):
    """And it is gone when the workflow has ended."""
    told, temporary, python = tmp_path / "told", tmp_path / "temporary", tmp_path / "bin" / "python"
    for folder in (temporary, python.parent):
        folder.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> {told}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    words = ["--profile", f"profiles/{profile}", "--directory", str(tmp_path / "work"), spec]
    path = f"{python.parent}:{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "snakemake", *words],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "TMPDIR": str(temporary)},
        check=True,
        capture_output=True,
    )
    assert told.exists() is (profile == "demo")
    limit = time.monotonic() + LIMIT
    while list(temporary.glob("fewstep-*")) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not list(temporary.glob("fewstep-*"))
