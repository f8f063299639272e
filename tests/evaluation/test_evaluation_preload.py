"""A stage that a preloaded process runs is the stage: its bytes, its refusals, its signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
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

from fewstep import preload
from fewstep.common import preloaded
from fewstep.common.provenance import sources

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ready() -> Iterator[dict[str, str]]:
    """The environment that leads to the process; afterwards it ends with the one that started it."""
    # A test run in the background ignores Ctrl-C, and so would what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        found = preloaded.start()
        yield {**os.environ, **found}
    signal.signal(signal.SIGINT, before)
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
    """A stage that waits for its spec, from a pipe: the launcher, and the end to write to."""
    pipe = call.out.with_name("pipe")
    os.mkfifo(pipe)
    launcher = launch(replaced(call, "--spec", str(pipe)), environment, *words)
    limit = time.monotonic() + LIMIT
    end = None
    while time.monotonic() < limit:
        with suppress(OSError):  # nobody opens it yet
            end = end or os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            # Python acts on a signal that comes just before a read only once the read has ended.
            if state(reader(pipe)) == "S":
                return launcher, end
        time.sleep(0.05)
    launcher.kill()
    raise TimeoutError(f"the stage did not read its spec within {LIMIT} s")


def reader(pipe: Path) -> int:
    """Number of the process that has a pipe open, other than this one."""
    others = (file for file in Path("/proc").glob("[0-9]*/fd/*") if file.parts[2] != str(os.getpid()))
    for file in others:
        with suppress(OSError):  # the file was closed
            if file.readlink() == pipe:
                return int(file.parts[2])
    raise ProcessLookupError(f"nobody reads {pipe}")


def state(process: int) -> str:
    """Letter of proc(5): R for running, S for waiting."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


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


def test_an_interrupted_stage(pipeline: TinyPipeline, ready, tmp_path):
    """It ends by the signal, as any Python does."""
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready)
    launcher.send_signal(signal.SIGINT)
    _, told = launcher.communicate(timeout=LIMIT)
    os.close(end)
    assert launcher.returncode == -signal.SIGINT
    assert "Traceback" not in told


def test_a_killed_launcher_takes_the_stage_along(pipeline: TinyPipeline, ready, tmp_path):
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), ready)
    launcher.kill()
    launcher.communicate(timeout=LIMIT)
    assert_nobody_reads(end)


def assert_nobody_reads(end: int) -> None:
    """The stage has ended, or does so now."""
    limit = time.monotonic() + LIMIT
    with pytest.raises(BrokenPipeError):
        while time.monotonic() < limit:
            os.write(end, b" ")
            time.sleep(0.05)
    os.close(end)


def test_a_killed_process_takes_its_copies_along(pipeline: TinyPipeline, tmp_path, monkeypatch):
    """Nothing else could stop them; the launcher says so in one line."""
    monkeypatch.chdir(ROOT)
    found = preloaded.start()
    launcher, end = waiting(pipeline.sample("cd", "cm-2", tmp_path), {**os.environ, **found})
    assert is_a_copy(launcher)
    process = preloaded._processes.pop()
    process.kill()
    process.communicate()
    shutil.rmtree(Path(found[preloaded.SOCKET]).parent)
    _, told = launcher.communicate(timeout=LIMIT)
    assert told == "error: fewstep.sample: the process that was to tell how it ended is gone\n"
    assert launcher.returncode == 1
    assert_nobody_reads(end)


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


def test_only_stages_with_captions_load_transformers():
    """Loading it takes seconds, which class-to-image need not pay."""
    pytest.importorskip("transformers")
    code = """
import socket, sys, tempfile
from fewstep.preload import Server
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(tempfile.mkdtemp() + "/socket")
    server = Server(listener)
    server._load()
    assert "fewstep.evaluation.scoring" in sys.modules
    assert not {"transformers", "diffusers", "fewstep.backbones.sd3"} & set(sys.modules)
    server._load_captions()
    assert {"transformers", "diffusers", "fewstep.backbones.clip"} <= set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=LIMIT, stdin=subprocess.PIPE)


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["--spec", "a", "--text", "b", "--out", "c"], True),
        (["--spec", "a", "--scorers", "b", "c"], True),
        (["--spec", "a", "--text", "--latents", "b"], False),
        (["--spec", "a", "--scorers"], False),
        (["--spec", "--text"], False),
    ],
)
def test_stages_with_captions(words, known):
    assert preload.has_captions(words) is known


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


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[tuple[preload.Server, socket.socket]]:
    """One that has loaded nothing, and its listening socket; its input has ended."""
    (tmp_path / "folder").mkdir()
    path = str(tmp_path / "folder" / "socket")
    monkeypatch.setenv(preloaded.SOCKET, path)
    monkeypatch.setattr(preload.Server, "_load", lambda self: preloaded.surroundings([]))
    read, write = os.pipe()
    os.close(write)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        os.fdopen(read) as ended,
    ):
        monkeypatch.setattr(sys, "stdin", ended)
        listener.bind(path)
        listener.listen()
        yield preload.Server(listener), listener


def test_a_client_that_says_nothing(server, monkeypatch):
    monkeypatch.setattr(preload, "PATIENCE", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(os.environ[preloaded.SOCKET])
        assert server[0]._answer() is None
        assert client.recv(1) == b""


def test_a_process_that_says_nothing(server, monkeypatch):
    """The stage starts by itself."""
    monkeypatch.setattr(preloaded, "PATIENCE", 0.01)
    preloaded.run("fewstep.score", [], [])


def test_where_nothing_can_be_forked(server, monkeypatch):
    def fork() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    request = {"module": "fewstep.score", "arguments": [], "surroundings": preloaded.surroundings([])}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(os.environ[preloaded.SOCKET])
        socket.send_fds(client, [json.dumps(request).encode()], [0, 1, 2])
        assert server[0]._answer() is None
        assert client.recv(1) == b""


def test_nothing_is_sent_to_another_user(server, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    preloaded.run("fewstep.score", [], [])
    connection, _ = server[1].accept()
    with connection:
        assert connection.recv(1) == b""


def test_at_the_end_of_its_input_nobody_can_connect(server):
    assert server[0].serve() is None
    assert server[1].fileno() == -1
    assert not Path(os.environ[preloaded.SOCKET]).exists()


@pytest.mark.parametrize("lacking", ["pidfd_open", "python", "sockets"])
def test_where_there_is_no_such_process(tmp_path, monkeypatch, lacking):
    """Stages start by themselves, and nothing is left."""

    def refuse(*given: int) -> int:
        raise OSError("Function not implemented")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if lacking == "python":
        monkeypatch.setenv("PATH", "")
    else:
        monkeypatch.setattr(
            *{"pidfd_open": (os, "pidfd_open"), "sockets": (socket, "socket")}[lacking], refuse
        )
    assert preloaded.start() == {}
    assert not list(tmp_path.iterdir())


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
