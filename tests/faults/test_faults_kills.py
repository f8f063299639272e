"""Kills at random moments: no result is lost, and the results in the end are those of a run without any.

The draws are fixed; how far a process has come by then depends on the machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from campaign import COUNT, LONG, kills
from child_processes import finish, start
from configs import ROOT
from tiny_pipeline import TINY, Call, TinyPipeline

from fewstep.common.files import sha256

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
LIMIT = 1800


def check(path: Path, whole: Path) -> bool:
    """Count a result that is there and not that of a run without a kill."""
    different = path.exists() and sha256(path) != sha256(whole)
    kills["bits different"] += different
    return not different


def unfinished(call: Call, whole: Call) -> None:
    """After a kill each output is missing, or whole."""
    assert all(check(*pair) for pair in zip(call.outputs, whole.outputs, strict=True))


def finished(call: Call, whole: Call) -> None:
    lost = sum(not path.exists() for path in call.outputs)
    kills["results lost"] += lost
    assert not lost
    unfinished(call, whole)
    kept = {"model.safetensors", "train.jsonl", "time.json", "tensorboard"}
    assert {path.name for path in call.out.parent.iterdir()} - {"log"} <= {*kept, *extra(call)}


def extra(call: Call) -> set[str]:
    return {Path(call.arguments[call.arguments.index("--spec") + 1]).name}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cd", "scm"] if LONG else ["cd"])
def test_a_training(pipeline: TinyPipeline, tmp_path, method):
    """Killed again and again until it ends before its kill."""
    whole = pipeline.train(method, tmp_path / "whole")
    begun = time.monotonic()
    assert finish(start(whole, tmp_path / "log")) == 0
    length = time.monotonic() - begun
    draws = random.Random(method)
    tried = training = 0
    while tried < COUNT // 4:
        training += 1
        call = pipeline.train(method, tmp_path / str(training)).more("--save-steps", "2")
        while not call.out.exists():
            number = draws.choice(SIGNALS)
            process = start(call, call.out.parent / "log")
            process.join(draws.uniform(0, 2 * length))
            if process.is_alive():
                os.kill(process.pid, number)
                tried += 1
                kills[f"trainings, {number.name}"] += 1
                assert finish(process) in (0, 75, 143, -number), (call.out.parent / "log").read_text()
            else:
                assert finish(process) == 0, (call.out.parent / "log").read_text()
            unfinished(call, whole)
        finished(call, whole)


def tree(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all below it, all of them stopped."""
    found: list[psutil.Process] = []
    new = [psutil.Process(process.pid)]
    while new:
        for each in new:
            each.suspend()
        found += new
        new = [each for each in found[0].children(recursive=True) if each not in found]
    return found


def send(processes: list[psutil.Process], number: int) -> None:
    """A signal for each, and no time between to react."""
    for each in processes:
        each.send_signal(number)
    for each in processes:
        each.send_signal(signal.SIGCONT)
    psutil.wait_procs(processes, LIMIT)


def launched(call: Call, gpus: int) -> subprocess.Popen[bytes]:
    call.out.parent.mkdir(exist_ok=True)
    words = ["fewstep.launch", "--gpus", str(gpus), f"fewstep.{call.stage}", *call.arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (call.out.parent / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", *words], env=environment, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 2] if LONG else [1])
def test_the_tree_of_the_launcher(pipeline: TinyPipeline, tmp_path, gpus):
    """Some time after a saved state, or before the first; all processes get the signal, as on a cluster."""
    whole = pipeline.train("cd")
    if gpus > 1:
        whole = pipeline.train("cd", tmp_path / "whole")
        assert launched(whole, gpus).wait(LIMIT) == 0
    draws = random.Random(gpus)
    for trial in range(max(1, COUNT // 12)):
        call = pipeline.train("cd", tmp_path / str(trial)).more("--save-steps", "2")
        process, number, state = launched(call, gpus), draws.choice(SIGNALS), draws.randrange(4)
        while (
            state and process.poll() is None and not list(call.out.parent.glob(f"state-*/step-*{2 * state}"))
        ):
            time.sleep(0.01)
        time.sleep(draws.uniform(0, 1))
        if process.poll() is None:
            send(tree(process), number)
            kills[f"launchers of {gpus}, {number.name}"] += 1
        process.wait(LIMIT)
        unfinished(call, whole)
        if not call.out.exists():
            assert launched(call, gpus).wait(LIMIT) == 0, (call.out.parent / "log").read_text()
        finished(call, whole)


def snakemake(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles/demo"), "--directory", str(folder), "--cores", "1"]
    command += ["--configfile", str(ROOT / "config/demo.yaml"), str(folder / "tiny.yaml"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)


def done(folder: Path, *words: str) -> str:
    """What a call that succeeds says."""
    before = (folder / "log").stat().st_size
    assert snakemake(folder, *words).wait(LIMIT) == 0, (folder / "log").read_text()
    return (folder / "log").read_text()[before:]


def results(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Files of results and where the tests' own pipeline has the same, made without Snakemake."""
    for path in sorted(folder.joinpath("results/demo").rglob("*")):
        place = path.relative_to(folder / "results/demo")
        if path.is_file() and place.parts[0] != "specs" and path.name not in ("benchmark.tsv", "time.json"):
            yield path, place if place.parts[0] in ("assets", "latents") else Path("results") / place


TARGETS = ["latents/digits-pixels/manifest.json", *(["cd/base/0/cm-2/digits.json"] if LONG else [])]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_whole_workflow(pipeline: TinyPipeline, tmp_path, target):
    """kill -9 of Snakemake and all its jobs, --unlock, again."""
    draws = random.Random(target)
    for trial in range(max(1, COUNT // 48)):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "tiny.yaml").write_text(yaml.safe_dump({"overrides": TINY}))
        words = ["--", f"results/demo/{target}"]
        times = draws.choice([1, 2]) if LONG else 1
        for _ in range(times):
            process = snakemake(folder, *words)
            time.sleep(draws.uniform(2, 90 if target != TARGETS[0] else 14))
            if process.poll() is None:
                send(tree(process), signal.SIGKILL)
                kills["workflows, SIGKILL"] += 1
            process.wait(LIMIT)
            for path, place in results(folder):
                if path.suffix in (".tar", ".safetensors") and not path.name.startswith("."):
                    assert check(path, pipeline.folder / place), path
            done(folder, "--unlock", *words)
        done(folder, *words)
        assert "Nothing to be done" in done(folder, "-n", *words)
        found = dict(results(folder))
        kills["results lost"] += not (folder / "results/demo" / target).exists()
        assert folder / "results/demo" / target in found
        for path, place in found.items():
            assert not path.name.startswith(".") or path.name == ".known.json", f"{path} is left over"
            assert path.suffix not in (".tmp", ".part") and "state-" not in str(path), f"{path} is left over"
            if path.suffix in (".tar", ".safetensors", ".json", ".jsonl", ".npz"):
                assert check(path, pipeline.folder / place), path
