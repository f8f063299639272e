"""Checks of this machine: packages, GPUs, disk, the folder of results, licences and tokens of assets."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..common.cli import first_few
from ..common.folders import visible_files
from ..common.programs import run_command
from ..plan import Plan
from .profile import Profile, gpus_of

LOCAL_DISKS = {"ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs"}


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    state: Literal["ok", "warn", "fail"]
    name: str
    text: str


def packages() -> Check:
    wanted = ["torch", "accelerate", "diffusers", "webdataset", "torch_fidelity"]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        where = "planning works; jobs need them: pip install -e . or --software-deployment-method conda"
        return Check("warn", "packages", f"not in this Python: {', '.join(missing)} ({where})")
    return Check("ok", "packages", f"complete in {sys.prefix}")


def gpus(profile: Profile) -> Check:
    """GPUs of this machine against those of the profile."""
    wanted = max(gpus_of(profile.resources(rule)) or 0 for rule in profile.by_rule)
    query = "--query-gpu=name,memory.total,compute_cap"
    lines = run_command("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines()
    found = [[part.strip() for part in line.split(",")] for line in lines if line.count(",") == 2]
    text = f"{len(found)} visible, the profile uses {wanted}"
    if len(found) < wanted:
        return Check("fail", "GPUs", f"{text}: install the driver, or lower gpu in the profile")
    kinds = {f"{name} with {int(memory) / 1024:.0f} GiB" for name, memory, _ in found if memory.isdecimal()}
    text = "; ".join([text, *sorted(kinds)])
    old = sorted({name for name, _, version in found if version.partition(".")[0] in {*"34567"}})
    if old:
        remedy = "set precision: fp16 in the recipes that you train (settings.yaml)"
        return Check("warn", "GPUs", f"{text}; {', '.join(old)} computes bf16 slowly or not at all: {remedy}")
    return Check("ok", "GPUs", text)


def nearest_existing(path: str) -> Path:
    """The path or the nearest folder above it that exists."""
    folder = Path(path).absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())


def costs(plan: Plan) -> list[dict[str, str]] | str:
    """Lines of results/plan.csv for rules, or in one line why there are none."""
    with tempfile.TemporaryDirectory() as name:
        spec, table = Path(name) / "spec.json", Path(name) / "plan.csv"
        spec.write_text(plan.spec_text("costs", "costs"), encoding="utf-8")
        # In a process of its own: networks are counted with torch, which this one does without.
        command = [sys.executable, "-m", "fewstep.costs", "--spec", str(spec), "--out", str(table)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            return told[-1].removeprefix("error: ")
        lines = list(csv.DictReader(table.open(encoding="utf-8")))
    return [line for line in lines if line["kind"] == "rule"]


def disk(plan: Plan, lines: list[dict[str, str]] | str) -> Iterator[Check]:
    """Free space against what is still to be written.

    Args:
        lines: `costs`.
    """
    if isinstance(lines, str):
        yield Check("warn", "disk", f"not checked: {lines}")
        return
    kept = sum(float(line["kept_bytes"]) for line in lines) / 1e9
    moment = sum(float(line["temporary_bytes"]) for line in lines) / 1e9
    folder = nearest_existing(plan.path("<results>"))
    free = shutil.disk_usage(folder).free / 1e9
    trees = [Path(plan.path(f"<{name}>")) for name in ("results", "assets", "latents")]
    files = {path for tree in trees for path in tree.rglob("*") if path.is_file()}
    here = sum(path.stat().st_size for path in files) / 1e9
    text = f"{free:.0f} GB free at {folder}; everything asked for keeps {kept:.0f} GB, of which {here:.0f} GB"
    text += f" are here, and up to {moment:.0f} GB for a while"
    kept = max(0, kept - here)
    unknown = [note for line in lines for note in line["note"].split("; ") if "size" in note]
    if unknown:
        text += f" (not counted: {'; '.join(unknown)})"
    if free < kept:
        remedy = "move the pathvars of config/config.yaml to a larger disk, or ask for less"
        yield Check("fail", "disk", f"{text}: {remedy}")
    elif free < kept + moment:
        yield Check("warn", "disk", f"{text}: lower jobs in the profile, so that fewer run at a time")
    else:
        yield Check("ok", "disk", text)


def results_folder(plan: Plan, shared: bool) -> Check:
    """Whether results can be written, renamed and locked, and seen by other nodes."""
    folder = nearest_existing(plan.path("<results>"))
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as stream:
            path = Path(stream.name)
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
        path.replace(path.with_suffix(".renamed"))
        path.with_suffix(".renamed").unlink()
    except OSError as error:
        return Check("fail", "folder", f"cannot write to {folder}: {error.strerror}")
    kind = run_command("stat", "-f", "-c", "%T", str(folder)).strip()
    if not locks:
        remedy = "after a kill of Snakemake, scancel its jobs before starting it again"
        return Check("warn", "folder", f"{folder} ({kind}) has no file locks: {remedy}")
    if shared and kind in LOCAL_DISKS:
        return Check("warn", "folder", f"{folder} is on {kind}, a local disk: every node must see it")
    return Check("ok", "folder", f"{folder} ({kind}) can be written and locked")


def assets(plan: Plan) -> Iterator[Check]:
    """Licences and tokens of everything from outside that is still to be fetched."""
    for name in plan.assets():
        asset = plan.config.assets[name]
        page = asset.page or (f"https://huggingface.co/{asset.repo}" if asset.repo else "")
        text = f"{asset.licence} {page}".strip()
        record = Path(plan.file("record", asset=name))
        if record.exists():
            changed = added_or_removed(record) if asset.kind == "local" and not asset.files else ""
            yield Check("warn" if changed else "ok", f"asset {name}", changed or f"is here; {text}")
        elif asset.kind == "local" and not Path(asset.path or "").exists():
            yield Check("fail", f"asset {name}", f"{asset.path} is not there: put it there by hand; {text}")
        elif asset.gated and not has_token():
            remedy = f"accept its licence at {page}, then set HF_TOKEN"
            yield Check("fail", f"asset {name}", f"is gated and there is no token: {remedy}")
        else:
            yield Check("ok", f"asset {name}", text)
    wanted = set(plan.assets())
    for table in (name for name, entry in plan.config.tables.items() if entry.by_name):
        for name in plan.assets([table]):
            asset = plan.config.assets[name]
            if asset.gated and name not in wanted:
                wanted.add(name)
                remedy = f"for {table}, accept its licence ({asset.licence}) at {asset.page} and set HF_TOKEN"
                yield Check("ok" if has_token() else "warn", f"asset {name}", f"is gated: {remedy}")


def added_or_removed(record: Path) -> str:
    """What has come to a folder of this machine, or gone from it, since it was recorded; "" if nothing."""
    try:
        named = {file["name"] for file in json.loads(record.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"{record} cannot be read ({error}): fetch the asset again (snakemake -R fetch)"
    folder = record.with_suffix("")
    here = set(visible_files(folder))
    if here == named:
        return ""
    counts = f"{len(here - named)} files more and {len(named - here)} fewer than {record} names"
    return f"{folder} has {counts}: fetch the asset again (snakemake -R fetch), and with it what follows"


def copied(plan: Plan) -> Iterator[Check]:
    """Models that are here but older than what they follow from, as after a copy without times."""
    older = []
    for job in (job for job in plan.jobs() if job.stage == "train"):
        model = Path(plan.file("model", **job.key))
        names = [name for group in plan.inputs("train", job.key).values() for name in group]
        inputs = [Path(name) for name in names if Path(name).exists()]
        if model.exists() and any(path.stat().st_mtime > model.stat().st_mtime for path in inputs):
            older.append(str(model))
    if older:
        remedy = "if they were copied without their times, add --touch once to the call"
        text = f"{first_few(older)} are older than their inputs and would be trained again: {remedy}"
        yield Check("warn", "models", text)


def has_token() -> bool:
    """Whether the Hugging Face client will find a token."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").exists()
