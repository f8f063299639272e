"""Check this machine, the profile and the cluster before anything is run.

    python -m fewstep.doctor [--profile profiles/slurm]
    snakemake --profile profiles/slurm doctor

One line a check: ok, warn or fail, what was found, and the remedy. Exit status 1 if one failed. Nothing is
submitted or downloaded. Without torch, the space that models need is not counted.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from .config import ConfigError
from .config.base import merge, read_yaml
from .config.specs import CostsSpec
from .launch import gpus_in
from .plan import Plan

LOCAL_DISKS = {"ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs"}
TOOLS = ["sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"]


@dataclass(frozen=True)
class Check:
    """Outcome of one check."""

    state: Literal["ok", "warn", "fail"]
    name: str
    text: str


def main(argv: list[str] | None = None) -> None:
    """Print every check; exit status 1 if one failed."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    slurm_profile = [Path("profiles/slurm")]
    arguments.add_argument(
        "--profile", type=Path, nargs="+", default=slurm_profile, help="later ones replace entries of earlier"
    )
    given = arguments.parse_args(argv)
    failed = False
    for check in examine(*given.profile):
        failed |= check.state == "fail"
        print(f"{check.state:<5} {check.name}: {check.text}", flush=True)
    raise SystemExit(1 if failed else 0)


def profiles_of(words: list[str]) -> list[str]:
    """Profiles that a call of snakemake names, those that replace others last; none if it names none."""
    arguments = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    arguments.add_argument("--profile", action="append", default=[])
    arguments.add_argument("--workflow-profile", action="append", default=[])
    given, _ = arguments.parse_known_args(words)
    return [*given.profile, *given.workflow_profile]


def examine(*folders: Path) -> Iterator[Check]:
    """All checks for the profile in ``folders``, in the order of a reader's interest."""
    try:
        profile: dict[str, Any] = {}
        for folder in folders:
            profile |= read_yaml(folder / "config.yaml")
        raw: dict[str, Any] = {}
        for file in ["config/config.yaml", *profile.get("configfile", [])]:
            raw = merge(raw, read_yaml(Path(file)))
        plan = Plan(raw)
    except ConfigError as error:
        yield Check("fail", "configuration", str(error))
        return
    yield Check("ok", "configuration", f"{' + '.join(map(str, folders))} asks for {', '.join(plan.wanted)}")
    yield packages()
    yield from disk(plan)
    yield folder_works(plan, profile.get("executor") == "slurm")
    yield from assets(plan)
    if profile.get("executor") == "slurm":
        yield from slurm(profile, plan)
    else:
        yield gpus(profile)


def packages() -> Check:
    wanted = ["torch", "accelerate", "diffusers", "webdataset", "torch_fidelity"]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        where = "planning works; jobs need them: pip install -e . or --software-deployment-method conda"
        return Check("warn", "packages", f"not in this Python: {', '.join(missing)} ({where})")
    return Check("ok", "packages", f"complete in {sys.prefix}")


def gpus_of(resources: dict[str, Any]) -> int:
    """GPUs of one node that a rule asks for."""
    return int(resources.get("gpu", 0)) or gpus_in(str(resources.get("gres", "")))


def gpus(profile: dict[str, Any]) -> Check:
    """GPUs of this machine against those of the profile."""
    wanted = max((gpus_of(entry) for entry in profile.get("set-resources", {}).values()), default=0)
    found = sum(line.startswith("GPU ") for line in ask("nvidia-smi", "-L").splitlines())
    text = f"{found} visible, the profile uses {wanted}"
    if found < wanted:
        return Check("fail", "GPUs", f"{text}: install the driver, or lower gpu in the profile")
    return Check("ok", "GPUs", text)


def existing(path: str) -> Path:
    """The path or the nearest folder above it that exists."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def disk(plan: Plan) -> Iterator[Check]:
    """Free space against what is still to be written."""
    spec = plan.spec("costs", "costs")
    assert isinstance(spec, CostsSpec)
    try:
        from .bench.estimate import estimate
    except ModuleNotFoundError as error:
        yield Check(
            "warn", "disk", f"not checked: models are counted with torch, and there is no {error.name}"
        )
        return
    lines = estimate(spec, timed=False)
    kept, moment = (sum(getattr(line, kind) for line in lines) / 1e9 for kind in ("kept", "temporary"))
    folder = existing(plan.path("<results>"))
    free = shutil.disk_usage(folder).free / 1e9
    trees = [Path(plan.path(f"<{name}>")) for name in ("results", "assets", "latents")]
    files = {path for tree in trees for path in tree.rglob("*") if path.is_file()}
    here = sum(path.stat().st_size for path in files) / 1e9
    text = f"{free:.0f} GB free at {folder}; everything asked for keeps {kept:.0f} GB, of which {here:.0f} GB"
    text += f" are here, and up to {moment:.0f} GB for a while"
    kept = max(0, kept - here)
    unknown = [note for line in lines for note in line.unknown if "size" in note]
    if unknown:
        text += f" (not counted: {'; '.join(unknown)})"
    if free < kept:
        remedy = "move the pathvars of config/config.yaml to a larger disk, or ask for less"
        yield Check("fail", "disk", f"{text}: {remedy}")
    elif free < kept + moment:
        yield Check("warn", "disk", f"{text}: lower jobs in the profile, so that fewer run at a time")
    else:
        yield Check("ok", "disk", text)


def folder_works(plan: Plan, shared: bool) -> Check:
    """Whether results can be written, renamed and locked, and seen by other nodes."""
    folder = existing(plan.path("<results>"))
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
    kind = ask("stat", "-f", "-c", "%T", str(folder)).strip()
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
        if Path(plan.file("record", asset=name)).exists():
            yield Check("ok", f"asset {name}", f"is here; {text}")
        elif asset.kind == "local" and not Path(asset.path or "").exists():
            yield Check("fail", f"asset {name}", f"{asset.path} is not there: put it there by hand; {text}")
        elif asset.gated and not token():
            remedy = f"accept its licence at {page}, then set HF_TOKEN"
            yield Check("fail", f"asset {name}", f"is gated and there is no token: {remedy}")
        else:
            yield Check("ok", f"asset {name}", text)


def token() -> bool:
    """Whether the Hugging Face client will find a token."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    home = os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").exists()


def slurm(profile: dict[str, Any], plan: Plan) -> Iterator[Check]:
    """The cluster against the profile: commands, partitions, accounts, GPUs, what it remembers."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        remedy = "run this on a login node, perhaps after `module load slurm`"
        yield Check("fail", "Slurm", f"no {', '.join(missing)} on PATH: {remedy}")
        return
    settings = ask("scontrol", "show", "config")
    if not settings:
        yield Check("fail", "Slurm", "scontrol does not reach the controller: ask the administrators")
        return
    yield Check("ok", "Slurm", ask("sinfo", "--version").strip())
    yield status(profile, settings)
    yield from arrays(profile, plan)
    yield report(profile, settings)
    default = profile.get("default-resources", {})
    rules = {rule: {**default, **entry} for rule, entry in profile.get("set-resources", {}).items()}
    for rule, cores in profile.get("set-threads", {}).items():
        rules[rule] = {**default, **rules.get(rule, {}), "cores": cores}
    for name in sorted({str(entry.get("slurm_partition", "")) for entry in [default, *rules.values()]}):
        own = [entry for entry in rules.values() if str(entry.get("slurm_partition", "")) == name]
        yield partition(name, own)
    yield account(default.get("slurm_account"))


def status(profile: dict[str, Any], settings: str) -> Check:
    """How Snakemake learns that a job is done."""
    accounting = "accounting_storage/slurmdbd" in settings
    if profile.get("slurm-status-command") != "squeue":
        if accounting:
            return Check("ok", "job status", "by sacct")
        return Check("fail", "job status", "sacct needs slurmdbd: set slurm-status-command: squeue")
    found = re.search(r"MinJobAge\s*=\s*(\d+)", settings)
    age, first = (
        int(found[1]) if found else 0,
        int(profile.get("slurm-init-seconds-before-status-checks", 40)),
    )
    if age < 3 * first:
        remedy = f"set slurm-init-seconds-before-status-checks to {age // 3} or less"
        return Check(
            "fail", "job status", f"Slurm forgets finished jobs after {age} s: {remedy}, or use sacct"
        )
    return Check("ok", "job status", f"by squeue; finished jobs are remembered for {age} s")


def arrays(profile: dict[str, Any], plan: Plan) -> Iterator[Check]:
    """Job arrays, as far as version 2.8 of the executor understands them."""
    rules = str(profile.get("slurm-array-jobs", ""))
    if not rules:
        return
    if profile.get("slurm-status-command") != "squeue":
        remedy = "set slurm-status-command: squeue, or remove slurm-array-jobs"
        yield Check("fail", "job arrays", f"sacct numbers their tasks otherwise than Snakemake: {remedy}")
        return
    shards = sum(job.stage == "encode" for job in plan.jobs())
    jobs = int(profile.get("jobs", 0))
    if jobs < shards:
        remedy = f"set jobs to more than {shards}, or remove slurm-array-jobs"
        text = f"{shards} shards and {jobs} jobs; Snakemake would wait for ever"
        yield Check("fail", "job arrays", f"{text}: {remedy}")
    else:
        yield Check("ok", "job arrays", f"of {rules}: {shards} shards")


def report(profile: dict[str, Any], settings: str) -> Check:
    """Whether Slurm can say what jobs have used."""
    name = "efficiency report"
    if not profile.get("slurm-efficiency-report"):
        return Check("ok", name, "not asked for")
    if "accounting_storage/slurmdbd" not in settings:
        remedy = "without it Snakemake ends with a line that says so; set slurm-efficiency-report: false"
        return Check("warn", name, f"needs accounting (slurmdbd), which this cluster lacks: {remedy}")
    return Check("ok", name, f"below {profile.get('slurm-efficiency-report-path', '.')}")


def partition(name: str, rules: list[dict[str, Any]]) -> Check:
    """Existence, size, time limit and preemption of one partition; "" is the cluster's default."""
    title = f"partition {name}" if name else "default partition"
    known = sorted(set(ask("sinfo", "-h", "-o", "%R").split()))
    if name and name not in known:
        return Check("fail", title, f"does not exist: set slurm_partition to one of {', '.join(known)}")
    has = largest(name)
    wanted = {
        "GPUs a node": (max((gpus_of(rule) for rule in rules), default=0), "gpu"),
        "nodes": (max((int(rule.get("nodes", 1)) for rule in rules), default=0), "nodes"),
        "cores a node": (max((int(rule.get("cores", 1)) for rule in rules), default=0), "set-threads"),
        "MB a node": (max((int(rule.get("mem_mb", 0)) for rule in rules), default=0), "mem_mb"),
    }
    for what, (asked, key) in wanted.items():
        if asked > has[what]:
            text = f"has {has[what]} {what}, a rule asks {asked}"
            return Check("fail", title, f"{text}: lower {key} in the profile, or use another partition")
    shown = ask("scontrol", "show", "partition", name) if name else ""
    if "PreemptMode=CANCEL" in shown:
        return Check("fail", title, "cancels preempted jobs, and Snakemake would wait for ever: use another")
    limit = minutes(shown)
    longest = max((int(entry.get("runtime", 0)) for entry in rules), default=0)
    if limit is not None and longest > limit:
        return Check("fail", title, f"allows {limit} minutes, a rule asks {longest}: lower runtime")
    fits = ", ".join(f"{has[what]} {what} (the profile uses {asked})" for what, (asked, _) in wanted.items())
    return Check("ok", title, fits)


def largest(name: str) -> dict[str, int]:
    """Number of nodes of a partition, and the most that one of them has of each thing."""
    has = {"GPUs a node": 0, "nodes": 0, "cores a node": 0, "MB a node": 0}
    where = ["-p", name] if name else []
    for line in ask("sinfo", "-h", *where, "-o", "%D|%c|%m|%G").splitlines():
        nodes, cores, memory, gres = (field.strip().rstrip("+") for field in line.split("|", 3))
        gpus_here = max((gpus_in(found) for found in re.findall(r"gpu[\w.:-]*", gres)), default=0)
        has["nodes"] += int(nodes)
        for what, count in (("GPUs a node", gpus_here), ("cores a node", cores), ("MB a node", memory)):
            has[what] = max(has[what], int(count))
    return has


def minutes(shown: str) -> int | None:
    """MaxTime of `scontrol show partition`, None if it has none."""
    found = re.search(r"MaxTime=(?:(\d+)-)?(\d+):(\d+):(\d+)", shown)
    if not found:
        return None
    return int(found[1] or 0) * 1440 + int(found[2]) * 60 + int(found[3])


def account(name: str | None) -> Check:
    user = ask("id", "-un").strip()
    known = sorted(
        set(ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account").split())
    )
    if not known:
        return Check("ok", "account", f"{name or 'none set'} (this cluster keeps no list to check it by)")
    if name and name not in known:
        return Check(
            "fail", "account", f"{name} is not yours: set slurm_account to one of {', '.join(known)}"
        )
    if not name:
        return Check("warn", "account", f"none set, Slurm's default is used; yours: {', '.join(known)}")
    return Check("ok", "account", name)


def ask(*words: str) -> str:
    """Output of a command; "" if it is missing or fails."""
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    main()
