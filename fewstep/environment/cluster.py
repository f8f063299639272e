"""Checks of a Slurm cluster against a profile: commands, job states, partitions, account."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

from ..common.gres import gpus_in
from ..plan import Plan
from .machine import Check, gpus_of, run_command

TOOLS = ["sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"]


def check_cluster(profile: dict[str, Any], plan: Plan) -> Iterator[Check]:
    """The cluster against the profile: commands, partitions, accounts, GPUs, what it remembers."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        remedy = "run this on a login node, perhaps after `module load slurm`"
        yield Check("fail", "Slurm", f"no {', '.join(missing)} on PATH: {remedy}")
        return
    settings = run_command("scontrol", "show", "config")
    if not settings:
        yield Check("fail", "Slurm", "scontrol does not reach the controller: ask the administrators")
        return
    yield Check("ok", "Slurm", run_command("sinfo", "--version").strip())
    yield job_status(profile, settings)
    yield from job_arrays(profile, plan)
    yield efficiency_report(profile, settings)
    default = profile.get("default-resources", {})
    rules = {rule: {**default, **entry} for rule, entry in profile.get("set-resources", {}).items()}
    for rule, cores in profile.get("set-threads", {}).items():
        rules[rule] = {**default, **rules.get(rule, {}), "cores": cores}
    for name in sorted({str(entry.get("slurm_partition", "")) for entry in [default, *rules.values()]}):
        own = [entry for entry in rules.values() if str(entry.get("slurm_partition", "")) == name]
        yield partition(name, own)
    yield account(default.get("slurm_account"))


def job_status(profile: dict[str, Any], settings: str) -> Check:
    """How Snakemake learns that a job is done."""
    accounting = "accounting_storage/slurmdbd" in settings
    if profile.get("slurm-status-command") != "squeue":
        if accounting:
            return Check("ok", "job status", "by sacct")
        return Check("fail", "job status", "sacct needs slurmdbd: set slurm-status-command: squeue")
    found = re.search(r"MinJobAge\s*=\s*(\d+)", settings)
    age = int(found[1]) if found else 0
    if age < 3 * int(profile.get("slurm-init-seconds-before-status-checks", 40)):
        remedy = f"set slurm-init-seconds-before-status-checks to {age // 3} or less, or use sacct"
        return Check("fail", "job status", f"Slurm forgets finished jobs after {age} s: {remedy}")
    return Check("ok", "job status", f"by squeue; finished jobs are remembered for {age} s")


def job_arrays(profile: dict[str, Any], plan: Plan) -> Iterator[Check]:
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


def efficiency_report(profile: dict[str, Any], settings: str) -> Check:
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
    known = sorted(set(run_command("sinfo", "-h", "-o", "%R").split()))
    if name and name not in known:
        return Check("fail", title, f"does not exist: set slurm_partition to one of {', '.join(known)}")
    has = node_sizes(name)
    wanted = {
        "GPUs a node": ("gpu", map(gpus_of, rules)),
        "nodes": ("nodes", (int(rule.get("nodes", 1)) for rule in rules)),
        "cores a node": ("set-threads", (int(rule.get("cores", 1)) for rule in rules)),
        "MB a node": ("mem_mb", (int(rule.get("mem_mb", 0)) for rule in rules)),
    }
    fits = []
    for what, (key, asked) in wanted.items():
        most = max(asked, default=0)
        if most > has[what]:
            text = f"has {has[what]} {what}, a rule asks {most}"
            return Check("fail", title, f"{text}: lower {key} in the profile, or use another partition")
        fits.append(f"{has[what]} {what} (the profile uses {most})")
    shown = run_command("scontrol", "show", "partition", name) if name else ""
    if "PreemptMode=CANCEL" in shown:
        return Check("fail", title, "cancels preempted jobs, and Snakemake would wait for ever: use another")
    limit = time_limit(shown)
    longest = max((int(entry.get("runtime", 0)) for entry in rules), default=0)
    if limit is not None and longest > limit:
        return Check("fail", title, f"allows {limit} minutes, a rule asks {longest}: lower runtime")
    return Check("ok", title, ", ".join(fits))


def node_sizes(name: str) -> dict[str, int]:
    """Number of nodes of a partition, and the most that one of them has of each thing."""
    has = {"GPUs a node": 0, "nodes": 0, "cores a node": 0, "MB a node": 0}
    where = ["-p", name] if name else []
    for line in run_command("sinfo", "-h", *where, "-o", "%D|%c|%m|%G").splitlines():
        nodes, cores, memory, gres = (field.strip().rstrip("+") for field in line.split("|", 3))
        gpus_here = max((gpus_in(found) for found in re.findall(r"gpu[\w.:-]*", gres)), default=0)
        has["nodes"] += int(nodes)
        for what, count in (("GPUs a node", gpus_here), ("cores a node", cores), ("MB a node", memory)):
            has[what] = max(has[what], int(count))
    return has


def time_limit(shown: str) -> int | None:
    """MaxTime of `scontrol show partition`, None if it has none."""
    found = re.search(r"MaxTime=(?:(\d+)-)?(\d+):(\d+):(\d+)", shown)
    return int(found[1] or 0) * 1440 + int(found[2]) * 60 + int(found[3]) if found else None


def account(name: str | None) -> Check:
    user = run_command("id", "-un").strip()
    listed = run_command("sacctmgr", "-n", "-P", "show", "assoc", f"user={user}", "format=account")
    known = ", ".join(sorted(set(listed.split())))
    if not known:
        return Check("ok", "account", f"{name or 'none set'} (this cluster keeps no list to check it by)")
    if not name:
        return Check("warn", "account", f"none set, Slurm's default is used; yours: {known}")
    if name not in known.split(", "):
        return Check("fail", "account", f"{name} is not yours: set slurm_account to one of {known}")
    return Check("ok", "account", name)
