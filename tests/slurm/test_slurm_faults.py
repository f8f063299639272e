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
from slurm_bench import MODEL, RUN, STEPS, Bench, asked, eventually, same
from slurm_cluster import Cluster, note

from fewstep.backbones.model_file import load_model

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("limited")]


@pytest.fixture(scope="module")
def limited(
    request: pytest.FixtureRequest,
    new_cluster: Callable[[], Cluster],
    built: Bench,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Future[tuple[Bench, list[int], str]] | None]:
    """A training that its time limit ends three times, beside the other tests: Slurm takes minutes."""
    if not any(item.name == "test_the_time_limit_comes_three_times" for item in request.session.items):
        yield None
        return
    bench = built.copy(tmp_path_factory.mktemp("limited") / "work", new_cluster())
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(end_three_times, bench)


def end_three_times(bench: Bench) -> tuple[Bench, list[int], str]:
    """Steps of the states saved when Slurm signalled that the time was up, and what Snakemake said.

    Slurm looks at the limits every 30 s. So that no training waits for minutes, its limit is lowered once
    it is in its loop: to less than two minutes from now, the signal being due 100 s before.
    """
    bench.edit(slurm_extra="--signal=TERM@100")
    steps: list[int] = []
    with bench.snakemake(MODEL) as run:
        for _ in range(3):
            with bench.held() as job:
                minutes = int(bench.ask("squeue", "-h", "-j", job, "-o", "%M").split(":")[-2])
                bench.ask("scontrol", "update", f"jobid={job}", f"timelimit={minutes + 2}")
                eventually(lambda: asked(bench))
            steps.append(eventually(lambda: 0 if bench.trainers() else bench.saved()))
        return bench, steps, run.finish()


def without_a_fault(bench: Bench, built: Bench) -> None:
    """The result is that of the training without a fault, bit for bit, and nothing else is left."""
    assert same(bench.model, built.model)
    assert {path.name for path in bench.model.parent.iterdir()} == {
        bench.model.name,
        f"{bench.model.name}.lock",
        "train.jsonl",
        "benchmark.tsv",
        "tensorboard",
    }


def test_preempted_and_then_its_node_is_lost(bench: Bench, built: Bench, cluster: Cluster):
    """Both times Slurm requeues the job under its old number; Snakemake only waits."""
    bench.edit(slurm_partition="spot")
    with bench.snakemake(MODEL) as run:
        with bench.held() as job:
            words = ["-p", "gpu", "-N2", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1"]
            bench.ask("sbatch", *words)
            eventually(lambda: asked(bench))
        step = eventually(bench.saved)
        eventually(lambda: not bench.trainers())
        with bench.held() as again:
            node = bench.ask("squeue", "-h", "-j", job, "-o", "%N").strip()
            cluster.crash(node)
        try:
            text = run.finish()
        finally:
            cluster.repair(node)
    assert again == job and bench.jobs("train") == [job]
    assert "Trying to restart" not in text
    (other,) = {"n1", "n2"} - {node}
    assert bench.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%N %T").split() == [other, "COMPLETED"]
    assert bench.resumed() == step
    without_a_fault(bench, built)
    note("preempted", f"saved and resumed at step {step} of {STEPS}, requeued by Slurm")
    note("node lost", f"resumed at step {step} on {other}, requeued by Slurm")


def test_snakemake_is_killed_twice(bench: Bench, built: Bench, cluster: Cluster):
    """Its job goes on. The next Snakemake submits it again, and the new job takes over where the old one
    is; what was finished in the meantime is not made again."""
    with bench.snakemake(MODEL) as run, bench.held() as first:
        run.kill()
        bench.unlock()
        with bench.snakemake(MODEL) as run:
            step = eventually(bench.resumed)
            (second,) = bench.jobs("train", "RUNNING")
            run.kill()
    assert cluster.states(first) != "COMPLETED"
    eventually(lambda: cluster.states(second) == "COMPLETED")
    written = bench.model.stat().st_mtime_ns
    bench.unlock()
    with bench.snakemake(MODEL) as run:
        run.finish()
    assert bench.jobs("train") == [first, second]
    assert bench.model.stat().st_mtime_ns == written
    without_a_fault(bench, built)
    note("Snakemake killed", f"a second job took over at step {step} of {STEPS}; the third had nothing to do")


def test_two_nodes_are_stopped_resume_and_train_the_same(built: Bench, bench: Bench, tmp_path: Path):
    """The overlay for several nodes. Every process is told of the signal; those on one node do the same."""
    bench.edit("slurm-multinode")
    with bench.snakemake(MODEL) as run:
        with bench.held(processes=2) as job:
            bench.ask("scancel", "--signal=TERM", job)
            eventually(lambda: asked(bench))
        step = eventually(bench.saved)
        told = bench.log()
        run.finish()
    for rank in (0, 1):
        assert f"process {rank} of 2: asked to stop by SIGTERM" in told
    assert step % 10 == 0, "processes confer every tenth step"
    assert bench.resumed() == step
    (again,) = bench.jobs("train", "COMPLETED")
    shown = bench.ask("squeue", "-h", "-t", "all", "-j", again, "-o", "%D %N")
    assert shown.split() == ["2", "n[1-2]"]
    assert same(bench.model, on_one_node(built, tmp_path, processes=2))
    ours, theirs = (load_model(each.model)[0] for each in (bench, built))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=2e-3, atol=2e-5)
    assert any((tensor != theirs[name]).any() for name, tensor in ours.items()), "it ran in one process"
    note("stopped by a signal on two nodes", f"saved and resumed at step {step} of {STEPS}")


def on_one_node(built: Bench, folder: Path, processes: int) -> Path:
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


def test_the_time_limit_comes_three_times(limited: Future[tuple[Bench, list[int], str]], built: Bench):
    bench, steps, text = limited.result()
    assert 0 < steps[0] < steps[1] < steps[2] < STEPS
    jobs = bench.jobs("train")
    assert len(jobs) == 4 and bench.jobs("train", "COMPLETED") == jobs[-1:]
    assert text.count("Trying to restart job") == 3, "Snakemake alone submits it again"
    assert bench.resumed() == steps[-1]
    without_a_fault(bench, built)
    note("time limit", f"saved and resumed at steps {', '.join(map(str, steps))} of {STEPS}")
