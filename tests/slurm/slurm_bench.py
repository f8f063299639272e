"""Snakemake on the test cluster: a working directory, the shipped profile cut to size, faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from configs import ROOT
from stages.stages_world import TINY

from fewstep.config.base import merge

FAST = Path(__file__).parent / "snakemake_fastpoll.py"
PROFILE = (ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8")
STEPS = 1000
LONG = {"methods": {"cd": {"train": {"steps": STEPS}}}}
SHORT = {"--slurm-init-seconds-before-status-checks": "1", "--latency-wait": "5"}

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], seconds: float = 150) -> Found:
    """The first true answer of ``look``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing within {seconds} s")


def small(resources: dict[str, Any]) -> dict[str, Any]:
    """A rule's resources for the fake nodes; what the profile says about Slurm stays."""
    sizes = {"gpu": 1, "gres": "gpu:1", "mem_mb": 500, "runtime": 10}
    return {**resources, **{key: value for key, value in sizes.items() if key in resources}}


def several_nodes() -> dict[str, Any]:
    """The training line for several nodes that the profile offers in a comment."""
    (line,) = [line for line in PROFILE.splitlines() if line.startswith("  # train: ")]
    return yaml.safe_load(line.removeprefix("  # "))["train"]


class Bench:
    """One working directory and the cluster that its jobs go to."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.results = folder / "results/demo"
        self.logs = folder / "logs/demo"
        (folder / "tiny.yaml").write_text(yaml.safe_dump({"overrides": merge(TINY, LONG)}))
        self.edit()

    def edit(self, **train: Any) -> None:
        """Write the profile, with changed resources of the rule train."""
        profile = yaml.safe_load(PROFILE)
        profile["default-resources"] = small(profile["default-resources"])
        rules = {rule: small(resources) for rule, resources in profile["set-resources"].items()}
        rules["train"] = {**rules["train"], **train}
        profile |= {"set-resources": rules, "set-threads": dict.fromkeys(profile["set-threads"], 1)}
        (self.folder / "profile").mkdir(exist_ok=True)
        (self.folder / "profile/config.yaml").write_text(yaml.safe_dump(profile))

    def replace_train(self, resources: dict[str, Any]) -> None:
        """Write the profile with the rule train's line replaced."""
        self.edit()
        path = self.folder / "profile/config.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["set-resources"]["train"] = small(resources)
        path.write_text(yaml.safe_dump(profile))

    def snakemake(self, *targets: str) -> Snakemake:
        words = ["--snakefile", str(ROOT / "Snakefile"), "--profile", str(self.folder / "profile")]
        words += ["--configfile", str(ROOT / "config/demo.yaml"), str(self.folder / "tiny.yaml")]
        words += [word for pair in SHORT.items() for word in pair]
        return Snakemake(self, [*words, "--", *targets])

    def ask(self, *words: str) -> str:
        return subprocess.run(
            words, env=self.env, cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout

    def job(self, rule: str, state: str = "RUNNING") -> str:
        """Number of a job of ``rule`` in this folder, "" if there is none."""
        for line in self.ask("squeue", "-h", "-t", "all", "-o", "%i|%T|%Z|%k").splitlines():
            number, now, folder, comment = line.split("|", 3)
            if now == state and folder == str(self.folder) and comment.startswith(f"rule_{rule}"):
                return number
        return ""

    def count(self, rule: str) -> int:
        """Jobs of ``rule`` that this folder has ever submitted."""
        lines = self.ask("squeue", "-h", "-t", "all", "-o", "%Z|%k").splitlines()
        return sum(line.startswith(f"{self.folder}|rule_{rule}_") for line in lines)


class Snakemake:
    """Snakemake in the background; always ended, and its jobs with it."""

    def __init__(self, bench: Bench, words: list[str]) -> None:
        self.bench = bench
        self.words = words

    def __enter__(self) -> Snakemake:
        self.out = self.bench.folder / "snakemake.out"
        with self.out.open("a") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(FAST), *self.words],
                cwd=self.bench.folder,
                env=self.bench.env,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def finish(self, seconds: float = 300) -> str:
        code = self.process.wait(seconds)
        text = self.out.read_text()
        logs = [path.read_text()[-2000:] for path in self.bench.logs.rglob("*.log")] if code else []
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
