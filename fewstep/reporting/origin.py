"""Where and when a page was made, and how long trainings took."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from .. import __version__

PACKAGES = ("torch", "numpy", "snakemake", "diffusers", "matplotlib")
FOLDER = Path(__file__).parents[2]


@dataclass(frozen=True)
class TrainingTime:
    seconds: float
    cpu_seconds: float


def read_benchmark(path: Path) -> TrainingTime | None:
    """Run time and CPU time of Snakemake's benchmark file; None where there is none, or none was measured.

    The times are of the last attempt: a training that was interrupted took longer.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    try:
        return TrainingTime(float(rows[-1]["s"]), float(rows[-1]["cpu_time"]))
    except (IndexError, KeyError, TypeError, ValueError):  # no line; NA after a job that ended at once
        return None


def describe_origin() -> dict[str, str]:
    """Date, commit, versions and machine of this process, for readers."""
    found = {"Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), "Commit": _commit()}
    versions = [f"fewstep {__version__}", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    gpus = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()
    found["Versions"] = ", ".join(versions)
    found["Machine"] = f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} CPUs"
    found["GPUs"] = ", ".join(gpus) or "none"
    return found


def _commit() -> str:
    commit = _output(["git", "-C", str(FOLDER), "rev-parse", "HEAD"])
    if not commit:
        return "unknown: not a checkout of git"
    changed = _output(["git", "-C", str(FOLDER), "status", "--porcelain", "--untracked-files=no"])
    return commit + (", with changes that are not committed" if changed else "")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _output(command: Sequence[str]) -> str:
    """What a program prints; empty where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""
