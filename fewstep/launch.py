"""Start a stage with as many processes as there are GPUs, on one node or several.

    python -m fewstep.launch --gpus 8 fewstep.train --spec ...
    python -m fewstep.launch --nodes 2 --gres gpu:4 --threads 32 fewstep.train --spec ...

None or one GPU: a plain Python process. More: torchrun. Several nodes: one torchrun a node, started by srun
inside the Slurm job. (`accelerate launch` makes no run of several processes without GPUs; torchrun behaves
the same with and without.) Every step is an exec, so that a signal to the job reaches the stage; but a
small stage without GPUs may be run by a copy of a process that is ready for it (common/preloaded.py), to
which the launcher passes signals on.

What a stage refuses it would refuse again. Its message is kept beside the output in NAME.refused, and a
retry (of the same call, files and code, on the same machine) repeats it and ends at once. Snakemake's first
attempt tries always: what was wrong may lie in a file that the call does not name.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .common import preloaded
from .common.cli import REFUSAL, plain_parser
from .common.gres import gpus_in
from .common.provenance import sources

TORCHRUN = "torch.distributed.run"
SAVE_SECONDS = 600
"""Time that torchrun leaves its processes between SIGTERM and SIGKILL (its own default is 30)."""


def main(argv: list[str] | None = None) -> None:
    """Replace this process by the stage, or by what starts it."""
    given = parse(argv)
    if given.lock and not acquire_lock(given.lock, given.rest):
        return
    code = sources()
    if not given.head and "--out" in given.rest:
        repeat_refusal(given, code)
    os.environ["OMP_NUM_THREADS"] = str(max(1, given.threads // max(1, given.gpus)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
    if given.nodes == 1 and given.gpus == 0:
        preloaded.run(given.module, given.rest, code)
    words = command_line(given)
    os.execvp(words[0], words)


def repeat_refusal(given: argparse.Namespace, code: list[str]) -> None:
    """Tell the stage where to keep a refusal.

    Raises:
        SystemExit: this call was refused before, with the same files and code, and is no first attempt.
    """
    out = Path(given.rest[given.rest.index("--out") + 1])
    files = _files_of(given.rest)
    states = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # A fault of one machine, such as a GPU that is gone, is none of another.
    content = [platform.node(), given.module, given.rest, given.nodes, given.gpus, states, code]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    kept = out.with_name(f"{out.name}.refused")
    with suppress(OSError, ValueError):
        before = json.loads(kept.read_text(encoding="utf-8"))
        if before["key"] == key and given.attempt != 1:
            raise SystemExit(f"error: {before['message']}\n(refused before; to try again, remove {kept})")
    os.environ[REFUSAL] = json.dumps([str(kept), key])


def parse(argv: list[str] | None) -> argparse.Namespace:
    arguments = plain_parser(__doc__)
    arguments.add_argument("--nodes", type=int, default=1)
    arguments.add_argument("--gpus", type=int, default=0, help="GPUs of each node")
    arguments.add_argument("--gres", default="", help="the same as Slurm writes it: gpu:4 or gpu:h100:4")
    cores = int(os.environ.get("OMP_NUM_THREADS", "1"))
    arguments.add_argument("--threads", type=int, default=cores, help="CPU cores of each node")
    arguments.add_argument("--lock", type=Path, help="file that only one such job may hold")
    arguments.add_argument("--attempt", type=int, help="1 for the first of a job, 2 for its first retry")
    arguments.add_argument("--head", help="address:port of the first node; set by the launcher itself")
    arguments.add_argument("module")
    arguments.add_argument("rest", nargs=argparse.REMAINDER)
    given = arguments.parse_args(argv)
    try:
        given.gpus = given.gpus or gpus_in(given.gres)
    except ValueError as error:
        arguments.error(str(error))
    if given.nodes < 1 or given.gpus < 0:
        arguments.error(f"--nodes {given.nodes} --gpus {given.gpus}: at least one node, no negative GPUs")
    return given


def command_line(given: argparse.Namespace) -> list[str]:
    """The command line that runs the module; inside an srun task it is this node's torchrun.

    Raises:
        SystemExit: several nodes outside a Slurm job.
    """
    python, stage = [sys.executable, "-m"], [given.module, *given.rest]
    processes = max(1, given.gpus)
    if given.nodes == 1 and processes == 1:
        return [*python, *stage]
    torchrun = [*python, TORCHRUN, f"--nnodes={given.nodes}", f"--nproc-per-node={processes}"]
    if given.nodes == 1:
        return [*torchrun, "--standalone", "-m", *stage]
    if given.head:
        address, _, port = given.head.rpartition(":")
        rank = f"--node-rank={os.environ['SLURM_NODEID']}"
        return [*torchrun, rank, f"--master-addr={address}", f"--master-port={port}", "-m", *stage]
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        raise SystemExit(f"error: {given.nodes} nodes need a Slurm job (SLURM_JOB_ID is not set)")
    # The executor clears Slurm's variables but the job's number, so srun is told everything.
    srun = ["srun", f"--nodes={given.nodes}", f"--ntasks={given.nodes}", "--ntasks-per-node=1"]
    srun += [f"--cpus-per-task={given.threads}", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    again = [f"--nodes={given.nodes}", f"--gpus={processes}", f"--threads={given.threads}"]
    return [*srun, *python, "fewstep.launch", *again, f"--head={head_address(job)}", *stage]


def head_address(job: str) -> str:
    """address:port on the job's first node. Its name need not resolve; Slurm knows its address.

    Raises:
        SystemExit: Slurm's commands are missing or fail.
    """
    try:
        nodes = _output("squeue", "-h", "-j", job, "-o", "%N").strip()
        first = _output("scontrol", "show", "hostnames", nodes).split()[0]
        shown = _output("scontrol", "show", "node", first, "-o").split()
    except FileNotFoundError as error:
        raise SystemExit(f"error: {error.filename} not found: several nodes need Slurm's commands") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"error: {shlex.join(error.cmd)}: {error.stderr.strip()}") from None
    fields = dict(word.split("=", 1) for word in shown if "=" in word)
    return f"{fields['NodeAddr']}:{20000 + int(job) % 10000}"


def acquire_lock(path: Path, stage: list[str], wait: float = 1.0) -> bool:
    """Hold ``path`` for as long as this process lives; False if the same work was done while waiting for it.

    When Snakemake dies its jobs go on, and its successor submits the work again, perhaps with another spec or
    other files. The newer job then asks the older one to save its state and stop (scancel), and goes on from
    there. The file says who holds it: a Slurm job or "-", and a digest of the work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    # The lock must outlive this program: it belongs to the stage that takes its place.
    os.set_inheritable(handle, True)
    job, work = os.environ.get("SLURM_JOB_ID", "-"), _digest_of(stage)
    waited = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not waited:
                _ask_to_stop(_holder(handle)[0], job, path)
            waited = True
            time.sleep(wait)
        except OSError as error:
            print(f"warning: {path}: this file system has no locks ({error})", file=sys.stderr)
            return True
    before = _holder(handle)[1]
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{job} {work}".encode(), 0)
    # Snakemake removed the output before it started this job, so what is there now is new.
    if waited and before == work and "--out" in stage and Path(stage[stage.index("--out") + 1]).exists():
        print(f"{path}: the job that held it has done the work")
        return False
    return True


def _holder(handle: int) -> tuple[str, str]:
    """Job and work of who holds, or held, a lock."""
    job, _, work = os.pread(handle, 200, 0).decode().partition(" ")
    return job or "-", work


def _files_of(stage: list[str]) -> list[Path]:
    """The files that a command names. Text of a spec is none, and longer than a name can be."""
    return [Path(word) for word in stage if not word.startswith("{") and Path(word).is_file()]


def _digest_of(stage: list[str]) -> str:
    """Of a stage's command, its spec, and the state of the other files that it reads."""
    content: list[object] = [stage]
    for file in _files_of(stage):
        if file.suffix == ".json":
            content.append(hashlib.sha256(file.read_bytes()).hexdigest())
        else:
            content.append([file.stat().st_size, file.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _ask_to_stop(holder: str, job: str, path: Path) -> None:
    known = holder != "-"
    print(f"{path}: held by {f'job {holder}' if known else 'another process'}; waiting for it to end")
    sys.stdout.flush()
    if known and job != "-" and holder != job:
        try:
            subprocess.run(["scancel", holder], check=False)
        except FileNotFoundError:
            print("warning: scancel not found: waiting for that job to end by itself", file=sys.stderr)


def _output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
