"""What a cluster does to a training, and that nothing is lost or done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from configs import ROOT
from slurm_cluster import Cluster, note
from slurm_workdir import MODEL, RUN, STEPS, Workdir, asked, eventually, same

from fewstep.backbones.model_file import load_model

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("limited")]


@pytest.fixture(scope="module")
def limited(
    request: pytest.FixtureRequest,
    new_cluster: Callable[[], Cluster],
    built: Workdir,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Future[tuple[Workdir, list[int]]] | None]:
    """A training that its time limit ends three times, beside the other tests: Slurm takes minutes."""
    if not any(item.name == "test_the_time_limit_comes_three_times" for item in request.session.items):
        yield None
        return
    workdir = built.copy(tmp_path_factory.mktemp("limited") / "work", new_cluster())
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(end_three_times, workdir)


def end_three_times(workdir: Workdir) -> tuple[Workdir, list[int]]:
    """Steps of the states saved when Slurm signalled that the time was up.

    Slurm looks at the limits every 30 s. So that no training waits for minutes, its limit is lowered once
    it is in its loop: to less than two minutes from now, the signal being due 100 s before.
    """
    workdir.edit(slurm_extra="--signal=TERM@100")
    steps: list[int] = []
    with workdir.snakemake(MODEL) as run:
        for _ in range(3):
            with workdir.held() as job:
                minutes = int(workdir.ask("squeue", "-h", "-j", job, "-o", "%M").split(":")[-2])
                workdir.ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes + 2}")
                eventually(lambda: asked(workdir))
            steps.append(eventually(lambda: 0 if workdir.trainers() else workdir.saved()))
        run.finish()
        return workdir, steps


def without_a_fault(workdir: Workdir, built: Workdir) -> None:
    """The result is that of the training without a fault, bit for bit, and nothing else is left."""
    assert same(workdir.model, built.model)
    assert {path.name for path in workdir.model.parent.iterdir()} == {
        workdir.model.name,
        f"{workdir.model.name}.lock",
        "train.jsonl",
        "benchmark.tsv",
        "time.json",
        "tensorboard",
    }


def test_preempted_and_then_its_node_is_lost(workdir: Workdir, built: Workdir, cluster: Cluster):
    """Both times Slurm requeues the job under its old number; Snakemake only waits."""
    workdir.edit(slurm_partition="spot")
    with workdir.snakemake(MODEL) as run:
        with workdir.held() as job:
            words = ["-p", "gpu", "-N2", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"]
            workdir.ask("sbatch", *words)
            eventually(lambda: asked(workdir))
        step = eventually(workdir.saved)
        eventually(lambda: not workdir.trainers())
        with workdir.held() as again:
            node = workdir.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
            cluster.crash(node)
        try:
            run.finish()
        finally:
            cluster.repair(node)
    assert again == job and workdir.jobs("train") == [job]
    assert workdir.restarts() == 0
    (other,) = {"n1", "n2"} - {node}
    assert workdir.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%N %T").split() == [other, "COMPLETED"]
    assert workdir.resumed() == step
    without_a_fault(workdir, built)
    note("preempted", f"saved and resumed at step {step} of {STEPS}, requeued by Slurm")
    note("node lost", f"resumed at step {step} on {other}, requeued by Slurm")


def test_snakemake_is_killed_twice(workdir: Workdir, built: Workdir, cluster: Cluster):
    """Its job goes on. The next Snakemake submits it again, and the new job takes over where the old one
    is; what was finished in the meantime is not made again."""
    with workdir.snakemake(MODEL) as run, workdir.held() as first:
        run.kill()
        workdir.unlock()
        with workdir.snakemake(MODEL) as run:
            step = eventually(workdir.resumed)
            (second,) = workdir.jobs("train", "RUNNING")
            run.kill()
    assert cluster.states(first) != "COMPLETED"
    eventually(lambda: cluster.states(second) == "COMPLETED")
    written = workdir.model.stat().st_mtime_ns
    workdir.unlock()
    with workdir.snakemake(MODEL) as run:
        run.finish()
    assert workdir.jobs("train") == [first, second]
    assert workdir.model.stat().st_mtime_ns == written
    without_a_fault(workdir, built)
    note("Snakemake killed", f"a second job took over at step {step} of {STEPS}; the third had nothing to do")


def test_two_nodes_are_stopped_resume_and_train_the_same(built: Workdir, workdir: Workdir, tmp_path: Path):
    """The overlay for several nodes. Every process is told of the signal; those on one node do the same."""
    workdir.edit("slurm-multinode")
    with workdir.snakemake(MODEL) as run:
        with workdir.held(processes=2) as job:
            workdir.ask("scancel", "--signal=TERM", job)
            eventually(lambda: asked(workdir))
        step = eventually(workdir.saved)
        told = workdir.log()
        run.finish()
    for rank in (0, 1):
        assert f"process {rank} of 2: asked to stop by SIGTERM" in told
    assert step % 10 == 0, "processes confer every tenth step"
    assert workdir.resumed() == step
    (again,) = workdir.jobs("train", "COMPLETED")
    shown = workdir.ask("squeue", "-h", "-t", "all", "-j", again, "-o", "%D %N")
    assert shown.split() == ["2", "n[1-2]"]
    assert same(workdir.model, on_one_node(built, tmp_path, processes=2))
    ours, theirs = (load_model(each.model)[0] for each in (workdir, built))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=2e-3, atol=2e-5)
    assert any((tensor != theirs[name]).any() for name, tensor in ours.items()), "it ran in one process"
    note("stopped by a signal on two nodes", f"saved and resumed at step {step} of {STEPS}")


def on_one_node(built: Workdir, folder: Path, processes: int) -> Path:
    """The same spec trained in a plain shell, without Slurm."""
    out = folder / "shell/model.safetensors"
    words = ["--spec", built.results / f"specs/train/{RUN}.json"]
    words += ["--latents", built.results / "latents/digits-latents/manifest.json"]
    words += ["--teacher", built.results / "teacher/base/0/model.safetensors"]
    words += ["--out", out, "--curve", out.with_name("train.jsonl")]
    launch = [sys.executable, "-m", "fewstep.launch", "--gpus", str(processes), "fewstep.train"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *map(str, words)], cwd=built.folder, env=env, check=True)
    return out


def test_the_time_limit_comes_three_times(limited: Future[tuple[Workdir, list[int]]], built: Workdir):
    workdir, steps = limited.result()
    assert 0 < steps[0] < steps[1] < steps[2] < STEPS
    jobs = workdir.jobs("train")
    assert len(jobs) == 4 and workdir.jobs("train", "COMPLETED") == jobs[-1:]
    assert workdir.restarts() == 3, "Snakemake alone submits it again"
    assert workdir.resumed() == steps[-1]
    without_a_fault(workdir, built)
    note("time limit", f"saved and resumed at steps {', '.join(map(str, steps))} of {STEPS}")
