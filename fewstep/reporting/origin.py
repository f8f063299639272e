"""Where and when a page was made."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..common.device_time import processor
from ..common.programs import run_command

PACKAGES = ("torch", "numpy", "snakemake", "diffusers", "matplotlib")
FOLDER = Path(__file__).parents[2]


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
    found["Machine"] = f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} CPUs"
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
