"""Snakemake on the test cluster: a working directory, the shipped profiles cut to size, faults."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from configs import ROOT
from slurm_cluster import Cluster
from tiny_pipeline import TINY

from fewstep.backbones.model_file import load_model
from fewstep.common.files import sha256
from fewstep.config.base import merge, read_yaml

FAST = Path(__file__).parent / "snakemake_fastpoll.py"
SHORT = {"--slurm-init-seconds-before-status-checks": "1", "--latency-wait": "5"}
RUN = "decm/base/0"
MODEL = f"results/demo/{RUN}/model.safetensors"
TABLE = "results/demo/table1.csv"
STEPS = 400
COMPUTED = {"lightningdit": [1], "decm": [2]}
"""NFE of the rows of table 1 that the tests compute; the others are reported only."""

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], seconds: float = 900) -> Found:
    """The first true answer of ``look``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing within {seconds} s")


def overrides() -> dict[str, Any]:
    """What makes table 1 small: two rows, tiny networks, two latent shards (an array of jobs)."""
    rows: dict[str, Any] = {}
    for row in read_yaml(ROOT / "config/tables/table1.yaml")["rows"]:
        if steps := COMPUTED.get(row["id"]):
            reported = {metric: [None] * len(steps) for metric in row["reported"]}
            rows[row["id"]] = {"steps": steps, "reported": reported}
        elif "method" in row:
            rows[row["id"]] = {"method": None, "sampler": None}
    small = {
        "settings": {"latents": {"digits-latents": {"shards": 2}}},
        "methods": {"decm": {"train": {"steps": STEPS}}},
        "tables": {"table1": {"rows": rows}},
    }
    return merge(TINY, small)


def profile(name: str) -> dict[str, Any]:
    return read_yaml(ROOT / f"profiles/{name}/config.yaml")


def small(resources: dict[str, Any]) -> dict[str, Any]:
    """A rule's resources for the fake nodes; what the profile says about Slurm stays."""
    sizes = {"gpu": 1, "gres": "gpu:1", "mem_mb": 500, "runtime": 10}
    return {**resources, **{key: value for key, value in sizes.items() if key in resources}}


class Workdir:
    """One working directory and the cluster that its jobs go to."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.env = {**cluster.env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.results = folder / "results/demo"
        self.logs = folder / "logs/demo"
        self.model = folder / MODEL
        folder.mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump({"overrides": overrides()}))
        self.edit()

    def copy(self, folder: Path, cluster: Cluster) -> Workdir:
        """The same files in another folder, but for one model that is still to be trained."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("snakemake.out", "slurm"))
        shutil.rmtree(folder / f"results/demo/{RUN}")
        return Workdir(folder, cluster)

    def edit(self, *overlays: str, retries: int | None = None, **train: Any) -> None:
        """Write the profile, with overlays, and with changed resources of the rule train."""
        made = profile("slurm")
        for name in overlays:
            made |= profile(name)
        rules = {rule: small(resources) for rule, resources in made["set-resources"].items()}
        rules["train"] |= train
        made["default-resources"] = small(made["default-resources"])
        made |= {"set-resources": rules, "set-threads": dict.fromkeys(made["set-threads"], 1)}
        made["retries"] = retries or made["retries"]
        (self.folder / "profile").mkdir(exist_ok=True)
        (self.folder / "profile/config.yaml").write_text(yaml.safe_dump(made))

    def snakemake(self, *targets: str) -> Snakemake:
        words = ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(self.folder / "profile")]
        words += ["--configfile", str(ROOT / "config/demo.yaml"), str(self.folder / "tiny.yaml")]
        words += [word for pair in SHORT.items() for word in pair]
        return Snakemake(self, [*words, "--", *targets])

    def unlock(self) -> None:
        """What the page on clusters says to type after Snakemake was killed."""
        words = [sys.executable, "-m", "snakemake", *self.snakemake(MODEL).words[:-2], "--unlock"]
        subprocess.run(words, env=self.env, cwd=self.folder, check=True, capture_output=True)

    def ask(self, *words: str) -> str:
        return self.cluster.ask(*words, cwd=self.folder)

    def jobs(self, rule: str, state: str = "") -> list[str]:
        """Numbers of the jobs of ``rule`` in this folder, finished ones too; of an array, of its tasks."""
        found = []
        for line in self.ask("squeue", "-h", "-t", "all", "-o", "%i|%T|%Z|%k").splitlines():
            number, now, folder, comment = line.split("|", 3)
            if state in ("", now) and folder == str(self.folder) and comment.startswith(f"rule_{rule}_"):
                found.append(number)
        return sorted(found)

    def restarts(self) -> int:
        """How often Snakemake itself has submitted a job again; its log has it, the console has not."""
        logs = (self.folder / ".snakemake/log").glob("*.log")
        return sum(path.read_text().count("Trying to restart job") for path in logs)

    def log(self) -> str:
        path = self.logs / f"train/{RUN}.log"
        return path.read_text() if path.exists() else ""

    def resumed(self) -> int:
        """Step at which the present attempt of the training has resumed, 0 if it began anew."""
        found = re.search(r"resumed at step (\d+)", self.log())
        return int(found[1]) if found else 0

    def saved(self) -> int:
        """Step of the state on disk, 0 without one."""
        return max((int(path.name[5:]) for path in self.model.parent.glob("state-*/step-*[0-9]")), default=0)

    def trainers(self) -> list[int]:
        """Processes that train in this folder and are ready to save when asked."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"fewstep.train" in words[1:4] and (process / "cwd").readlink() == self.folder:
                    status = dict(re.findall(r"(\w+):\s+(\w+)", (process / "status").read_text()))
                    if int(status["SigCgt"], 16) & 1 << signal.SIGUSR1 - 1:
                        found.append(int(process.name))
            except OSError:
                continue
        return found

    @contextmanager
    def held(self, processes: int = 1) -> Iterator[str]:
        """Number of the job that trains now; its processes stand still, after some steps.

        Nothing that a training computes depends on the clock, so that the cluster may take its time.
        """
        trainers = eventually(lambda: pids if len(pids := self.trainers()) == processes else None)
        begun = [seconds_of(pid) for pid in trainers]
        eventually(lambda: all(seconds_of(pid) > was + 0.5 for pid, was in zip(trainers, begun)))
        send(signal.SIGSTOP, trainers)
        try:
            yield "".join(self.jobs("train", "RUNNING"))
        finally:
            send(signal.SIGCONT, trainers)


def seconds_of(pid: int) -> float:
    """CPU time that a process has used; for ever, once it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.inf
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def send(number: signal.Signals, processes: list[int]) -> None:
    """A signal to each of them that still lives."""
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def asked(workdir: Workdir) -> bool:
    """Whether SIGTERM has come to all that train, though they stand still, or nothing trains any more."""
    return all(pending(pid) for pid in workdir.trainers())


def pending(pid: int) -> bool:
    try:
        found = re.findall(r"S[ih][gd]Pnd:\s+(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return True
    return any(int(mask, 16) & 1 << signal.SIGTERM - 1 for mask in found)


def same(ours: Path, theirs: Path) -> bool:
    """Whether two trainings have made the same weights and curves, bit for bit."""
    (one, _), (two, _) = load_model(ours), load_model(theirs)
    equal = one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    return equal and len({sha256(path.with_name("train.jsonl")) for path in (ours, theirs)}) == 1


class Snakemake:
    """Snakemake in the background; always ended, and its jobs with it."""

    def __init__(self, workdir: Workdir, words: list[str]) -> None:
        self.workdir = workdir
        self.words = words

    def __enter__(self) -> Snakemake:
        self.out = self.workdir.folder / "snakemake.out"
        with self.out.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(FAST), *self.words],
                cwd=self.workdir.folder,
                env=self.workdir.env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def finish(self, seconds: float = 1500) -> str:
        code = self.process.wait(seconds)
        text = self.out.read_text()
        logs = [path.read_text()[-2000:] for path in self.workdir.logs.rglob("*.log")] if code else []
        assert code == 0, "\n".join([text[-6000:], *logs])
        return text

    def kill(self) -> None:
        """As an out-of-memory killer or a reboot of the login node would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
