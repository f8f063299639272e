"""What a cluster does to a training, and that nothing is lost or done twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from configs import ROOT
from slurm_bench import STEPS, Bench, eventually, several_nodes

from fewstep.checkpoint import load_model
from fewstep.files import sha256

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
HERE = Path(__file__).parent
RUN = "cd/base/0"
MODEL = f"results/demo/{RUN}/model.safetensors"


@pytest.fixture(scope="module")
def whole(built: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, never interrupted, in a plain shell."""
    out = tmp_path_factory.mktemp("whole")
    spec = Bench(out, built.env)
    with spec.snakemake(f"results/demo/specs/train/{RUN}.json") as run:
        run.finish()
    words = ["--spec", out / f"results/demo/specs/train/{RUN}.json"]
    words += ["--latents", built.results / "latents/digits-latents/manifest.json"]
    words += ["--teacher", built.results / "teacher/base/0/model.safetensors"]
    words += ["--out", out / "model.safetensors", "--curve", out / "train.jsonl"]
    subprocess.run(
        [sys.executable, "-m", "fewstep.train", *map(str, words)], cwd=ROOT, env=built.env, check=True
    )
    return out


def equal(bench: Bench, whole: Path) -> None:
    """Weights and curve bit for bit, and nothing else left."""
    model = bench.folder / MODEL
    ours, theirs = (load_model(path)[0] for path in (model, whole / "model.safetensors"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sha256(model.with_name("train.jsonl")) == sha256(whole / "train.jsonl")
    left = {path.name for path in model.parent.iterdir()}
    assert left == {model.name, f"{model.name}.lock", "train.jsonl", "benchmark.tsv", "tensorboard"}


def log(bench: Bench) -> str:
    path = bench.logs / f"train/{RUN}.log"
    return path.read_text() if path.exists() else ""


def training(bench: Bench, step: str = "") -> str:
    """Number of the job that trains now, once it is in its loop; ``step`` is where it has resumed."""

    def look() -> str:
        begun = resumed(bench) == step if step else list(bench.results.glob(f"{RUN}/state-*/train.jsonl"))
        return bench.job("train") if begun else ""

    job = eventually(look)
    time.sleep(0.5)
    return job


def resumed(bench: Bench) -> str:
    found = re.search(r"resumed at step (\d+)", log(bench))
    return found[1] if found else ""


def saved(bench: Bench) -> str:
    """Step of the state on disk."""
    return "".join(path.name[5:].lstrip("0") for path in bench.results.glob(f"{RUN}/state-*/step-*[0-9]"))


def test_stopped_three_times(bench: Bench, whole: Path):
    """The signal that the profile asks Slurm for, sent by hand: it goes to all tasks of the job."""
    steps: list[str] = []
    with bench.snakemake(MODEL) as run:
        for _ in range(3):
            job = training(bench, steps[-1] if steps else "")
            bench.ask("scancel", "--signal=TERM", job)
            eventually(lambda job=job: bench.ask("squeue", "-h", "-j", job, "-t", "FAILED", "-o", "%i"))
            steps.append(eventually(lambda: saved(bench)))
        text = run.finish()
    assert resumed(bench) == steps[-1]
    assert 0 < int(steps[0]) < int(steps[1]) < int(steps[2]) < STEPS
    assert text.count("Trying to restart job") == 3
    assert bench.count("train") == 4
    equal(bench, whole)


def test_time_limit(bench: Bench):
    """Slurm itself sends the signal. It looks every 30 s, and sends it up to 30 s too early."""
    bench.edit(runtime=1, slurm_extra="--signal=TERM@5")
    path = bench.folder / "tiny.yaml"
    path.write_text(path.read_text().replace(f"steps: {STEPS}", f"steps: {40 * STEPS}"))
    with bench.snakemake(MODEL):
        job = training(bench)
        step = eventually(lambda: saved(bench))
        eventually(lambda: bench.ask("squeue", "-h", "-j", job, "-t", "FAILED", "-o", "%i"))
        training(bench, step)


def test_preempted(bench: Bench, whole: Path):
    """Slurm requeues the job under its old number; Snakemake only waits."""
    bench.edit(slurm_partition="spot")
    with bench.snakemake(MODEL) as run:
        job = training(bench)
        words = ["-p", "gpu", "-N2", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"]
        bench.ask("sbatch", *words)
        step = eventually(lambda: saved(bench))
        text = run.finish()
    assert resumed(bench) == step
    assert bench.job("train", "COMPLETED") == job and bench.ask("squeue", "-h", "-j", job, "-t", "all")
    assert "Trying to restart" not in text
    equal(bench, whole)


def test_a_node_is_lost(bench: Bench, whole: Path, cluster: Path):
    """Its slurmd and all that it runs die at once. Slurm requeues the job on the other node."""
    with bench.snakemake(MODEL) as run:
        job = training(bench)
        node = bench.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
        crash(cluster, node)
        bench.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        try:
            text = run.finish()
        finally:
            bench.ask(str(HERE / "cluster.sh"), "node", str(cluster), node)
    assert "Trying to restart" not in text
    (other,) = {"n1", "n2"} - {node}
    assert bench.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%N %T").split() == [other, "COMPLETED"]
    equal(bench, whole)


def crash(cluster: Path, node: str) -> None:
    """Kill a node's daemon and every process of the jobs on it."""
    os.kill(int((cluster / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = any(word.startswith(b"PATH=" + bytes(cluster)) for word in words)
        if ours and f"SLURMD_NODENAME={node}".encode() in words:
            os.kill(int(process.name), signal.SIGKILL)


def test_snakemake_is_killed(bench: Bench, whole: Path):
    """Its job goes on. The next Snakemake submits it again; the new job takes over where the old one is."""
    with bench.snakemake(MODEL) as run:
        old = training(bench)
        run.kill()
    assert not (bench.folder / MODEL).exists()
    bench.ask(*unlock(bench))
    with bench.snakemake(MODEL) as run:
        run.finish()
    assert int(resumed(bench)) > 0
    assert bench.ask("squeue", "-h", "-j", old, "-t", "all", "-o", "%T").strip() != "COMPLETED"
    equal(bench, whole)


def test_snakemake_is_killed_and_its_job_ends_well(bench: Bench, whole: Path):
    """What was finished in the meantime is not made again."""
    with bench.snakemake(MODEL) as run:
        old = training(bench)
        run.kill()
    eventually(lambda: bench.ask("squeue", "-h", "-j", old, "-t", "COMPLETED", "-o", "%i"))
    written = (bench.folder / MODEL).stat().st_mtime_ns
    before = bench.count("train")
    bench.ask(*unlock(bench))
    with bench.snakemake(MODEL) as run:
        run.finish()
    assert bench.count("train") == before
    assert (bench.folder / MODEL).stat().st_mtime_ns == written
    equal(bench, whole)


def unlock(bench: Bench) -> list[str]:
    return [sys.executable, "-m", "snakemake", *bench.snakemake(MODEL).words[:-2], "--unlock"]


def test_two_nodes_are_stopped_and_resume(bench: Bench):
    path = bench.folder / "tiny.yaml"
    path.write_text(path.read_text().replace(f"steps: {STEPS}", f"steps: {STEPS // 2}"))
    bench.replace_train(several_nodes())
    with bench.snakemake(MODEL) as run:
        job = training(bench)
        bench.ask("scancel", "--signal=TERM", job)
        step = eventually(lambda: saved(bench))
        run.finish()
    assert resumed(bench) == step
    assert int(step) % 10 == 0, "processes confer every tenth step"
