"""Where and when a page was made, and how long trainings took."""

from __future__ import annotations

import csv
import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..common.programs import run_command

PACKAGES = ("torch", "numpy", "snakemake", "diffusers", "matplotlib")
FOLDER = Path(__file__).parents[2]


@dataclass(frozen=True)
class TrainingTime:
    seconds: float
    cpu_seconds: float
    memory: float | None
    """Most at once, in GB of the machine's memory."""


def read_benchmark(path: Path) -> TrainingTime | None:
    """Run time and CPU time of Snakemake's benchmark file; None where there is none, or none was measured.

    The times are of the last attempt: a training that was interrupted took longer.
    """
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    try:
        last = rows[-1]
        memory = last.get("max_rss", "")
        most = float(memory) * 2**20 / 1e9 if memory.replace(".", "", 1).isdigit() else None
        return TrainingTime(float(last["s"]), float(last["cpu_time"]), most)
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
    gpus = run_command("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    found["Versions"] = ", ".join(versions)
    found["Machine"] = f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} CPUs"
    found["GPUs"] = ", ".join(gpus) or "none"
    return found


def _commit() -> str:
    git = "git", "-C", str(FOLDER)
    top = run_command(*git, "rev-parse", "--show-toplevel").strip()
    if not top or Path(top).resolve() != FOLDER.resolve():  # perhaps the repository of someone's environment
        return "unknown: not a checkout of git"
    commit = run_command(*git, "rev-parse", "HEAD").strip()
    changed = run_command(*git, "status", "--porcelain", "--untracked-files=no")
    return commit + (", with changes that are not committed" if changed else "")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
