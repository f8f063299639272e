"""Checks of a Slurm cluster against a profile: commands, job states, partitions, account."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from ..common.gres import gpus_in
from ..common.programs import run_command
from ..plan import Plan
from .durations import attempts
from .machine import Check
from .profile import Profile, Value, gpus_of

TOOLS = ["sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"]
SIZES = {"GPUs a node": "gpu", "nodes": "nodes", "cores a node": "cores", "MB a node": "mem_mb"}
"""What a partition has, and the resource that asks for it."""


def check_cluster(profile: Profile, plan: Plan) -> Iterator[Check]:
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
    last = {rule: profile.resources(rule, attempts(profile, rule)[-1]) for rule in profile.by_rule}
    wanted = {str(asked.get("slurm_partition") or "") for asked in last.values()}
    for names in sorted(wanted):
        rules = {
            rule: asked for rule, asked in last.items() if str(asked.get("slurm_partition") or "") == names
        }
        yield from partitions(names.split(","), rules)
    for name in sorted({str(asked.get("slurm_account") or "") for asked in last.values()}):
        yield account(name)


def job_status(profile: Profile, settings: str) -> Check:
    """How Snakemake learns that a job is done."""
    accounting = "accounting_storage/slurmdbd" in settings
    if profile.text("slurm-status-command") != "squeue":
        if accounting:
            return Check("ok", "job status", "by sacct")
        return Check("fail", "job status", "sacct needs slurmdbd: set slurm-status-command: squeue")
    found = re.search(r"MinJobAge\s*=\s*(\d+)", settings)
    age = int(found[1]) if found else 0
    wait = profile.number("slurm-init-seconds-before-status-checks", 40)
    if wait is not None and age < 3 * wait:
        remedy = f"set slurm-init-seconds-before-status-checks to {age // 3} or less, or use sacct"
        return Check("fail", "job status", f"Slurm forgets finished jobs after {age} s: {remedy}")
    return Check("ok", "job status", f"by squeue; finished jobs are remembered for {age} s")


def job_arrays(profile: Profile, plan: Plan) -> Iterator[Check]:
    """Job arrays, as far as version 2.8 of the executor understands them."""
    rules = profile.text("slurm-array-jobs")
    if not rules:
        return
    if profile.text("slurm-status-command") != "squeue":
        remedy = "set slurm-status-command: squeue, or remove slurm-array-jobs"
        yield Check("fail", "job arrays", f"sacct numbers their tasks otherwise than Snakemake: {remedy}")
        return
    shards = sum(job.stage == "encode" for job in plan.jobs())
    jobs = profile.number("jobs", 0)  # or "unlimited"
    if jobs is not None and jobs < shards:
        remedy = f"set jobs to more than {shards}, or remove slurm-array-jobs"
        text = f"{shards} shards and {jobs} jobs; Snakemake would wait for ever"
        yield Check("fail", "job arrays", f"{text}: {remedy}")
    else:
        yield Check("ok", "job arrays", f"of {rules}: {shards} shards")


def efficiency_report(profile: Profile, settings: str) -> Check:
    """Whether Slurm can say what jobs have used."""
    name = "efficiency report"
    if not profile.text("slurm-efficiency-report"):
        return Check("ok", name, "not asked for")
    if not shutil.which("sacct"):
        return Check("warn", name, "sacct not found, there will be none: set slurm-efficiency-report: false")
    if "accounting_storage/slurmdbd" not in settings:
        remedy = "without it Snakemake ends with a line that says so; set slurm-efficiency-report: false"
        return Check("warn", name, f"needs accounting (slurmdbd), which this cluster lacks: {remedy}")
    return Check("ok", name, f"below {profile.text('slurm-efficiency-report-path') or '.'}")


def partitions(names: Sequence[str], rules: Mapping[str, Mapping[str, Value]]) -> Iterator[Check]:
    """Partitions of which Slurm takes the first that is free: one that fits is enough."""
    found = [partition(name.strip(), rules) for name in names]
    one_fits = any(check.state == "ok" for check in found)
    for check in found:
        yield Check("warn", check.name, check.text) if one_fits and check.state == "fail" else check


def partition(name: str, rules: Mapping[str, Mapping[str, Value]]) -> Check:
    """Existence, size, time limit and preemption of one partition; "" is the cluster's default.

    Args:
        rules: resources of the rules that use it.
    """
    title = f"partition {name}" if name else "default partition"
    known = sorted(set(run_command("sinfo", "-h", "-o", "%R").split()))
    if name and name not in known:
        return Check("fail", title, f"does not exist: set slurm_partition to one of {', '.join(known)}")
    has = node_sizes(name)
    fits = []
    for what, key in SIZES.items():
        most = largest(rules, key)
        if most > has[what]:
            text = f"has {has[what]} {what}, a rule asks {most}"
            lower = "set-threads" if key == "cores" else key
            return Check("fail", title, f"{text}: lower {lower} in the profile, or use another partition")
        fits.append(f"{has[what]} {what} (the profile uses {most})")
    shown = run_command("scontrol", "show", "partition", name) if name else ""
    if "PreemptMode=CANCEL" in shown:
        return Check("fail", title, "cancels preempted jobs, and Snakemake would wait for ever: use another")
    limit = time_limit(shown)
    longest = largest(rules, "runtime")
    if limit is not None and longest > limit:
        return Check("fail", title, f"allows {limit} minutes, a rule asks {longest}: lower runtime")
    return Check("ok", title, ", ".join(fits))


def largest(rules: Mapping[str, Mapping[str, Value]], key: str) -> int:
    """The most that a rule asks for, of what can be told."""
    asked = [gpus_of(rule) if key == "gpu" else rule.get(key) for rule in rules.values()]
    return max((value for value in asked if isinstance(value, int)), default=0)


def node_sizes(name: str) -> dict[str, int]:
    """Number of nodes of a partition, and the most that one of them has of each thing."""
    has = dict.fromkeys(SIZES, 0)
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


def account(name: str) -> Check:
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
