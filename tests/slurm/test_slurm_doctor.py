"""The doctor, on this machine and on the test cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configs import ROOT

from fewstep import doctor
from fewstep.config.base import read_yaml
from fewstep.environment import Check, cluster, examine, machine, profiles_of

SLURM = read_yaml(ROOT / "profiles/slurm/config.yaml")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def checks(profile: Path, name: str) -> list[Check]:
    return [check for check in examine([profile]) if check.name.startswith(name)]


def test_the_miniature_can_run_here(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--profile", "profiles/demo"])
    assert ended.value.code == 0, capsys.readouterr().out


def test_paper_scale_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    profile = ROOT / "profiles/slurm"
    (gated,) = checks(profile, "asset imagenet-train")
    assert gated.state == "fail"
    assert "accept its licence at https://" in gated.text and "HF_TOKEN" in gated.text
    (tools,) = checks(profile, "Slurm")
    assert tools.state == "fail" and "login node" in tools.text
    monkeypatch.setenv("HF_TOKEN", "made up")
    assert checks(profile, "asset imagenet-train")[0].state == "ok"


def test_no_room(monkeypatch):
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    (disk,) = checks(ROOT / "profiles/local", "disk")
    assert disk.state == "fail" and disk.text.startswith("1 GB free")


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setattr(machine, "run_command", lambda *_: "")
    assert machine.gpus({"set-resources": {"train": {"gres": "gpu:h100:8"}}}).state == "fail"
    monkeypatch.setattr(machine, "run_command", lambda *_: "GPU 0: H200\nGPU 1: H200\n")
    assert machine.gpus({"set-resources": {"train": {"gpu": 2}}}).state == "ok"


def test_a_folder_of_someone_else(monkeypatch, demo_plan):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine.tempfile, "NamedTemporaryFile", refused)
    check = machine.results_folder(demo_plan, shared=True)
    assert check.state == "fail" and "Permission denied" in check.text


def test_a_bad_configuration_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("configfile: [nowhere.yaml]\n")
    (check,) = examine([tmp_path])
    assert check.state == "fail" and "nowhere.yaml" in check.text


def test_from_another_folder(monkeypatch, tmp_path):
    """A preset is found beside its profile, config/ in the repository."""
    monkeypatch.chdir(tmp_path)
    first = next(examine([ROOT / "profiles/demo"], ROOT))
    assert first.state == "ok" and "table3" in first.text


def test_what_slurm_forgets():
    profile = {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 20}
    assert cluster.job_status(profile, "MinJobAge = 300 sec").state == "ok"
    short = cluster.job_status(profile, "MinJobAge = 30 sec")
    assert short.state == "fail" and "or less" in short.text
    assert cluster.job_status({}, "AccountingStorageType = accounting_storage/none").state == "fail"
    assert cluster.job_status({}, "AccountingStorageType = accounting_storage/slurmdbd").state == "ok"


def test_job_arrays(paper_plan):
    """What version 2.8 of the executor would wait for for ever."""

    def check(**changes: object) -> Check:
        (found,) = cluster.job_arrays({**SLURM, **changes}, paper_plan)
        return found

    assert check().state == "ok"
    few = check(jobs=100)
    assert few.state == "fail" and "shards and 100 jobs; Snakemake would wait for ever" in few.text
    assert "sacct" in check(**{"slurm-status-command": "sacct"}).text
    assert not list(cluster.job_arrays({"jobs": 1}, paper_plan))


def test_an_overlay_replaces_entries(tmp_path):
    profile = ROOT / "profiles/slurm"
    (tmp_path / "config.yaml").write_text("executor: local\n")
    named = {check.name for check in examine([profile, tmp_path])}
    assert "GPUs" in named and "Slurm" not in named


def test_profiles_of_a_call(tmp_path):
    (tmp_path / "b").mkdir()
    words = ["snakemake", "--profile", "a", "--profile=b", "--workflow-profile", "c", "-n", "doctor"]
    assert profiles_of(words, [tmp_path / "other", tmp_path]) == [Path("a"), tmp_path / "b", Path("c")]
    assert profiles_of(["snakemake", "doctor"], []) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [("MaxTime=1-02:30:00 X", 1590), ("MaxTime=00:30:00", 30), ("MaxTime=UNLIMITED", None), ("", None)],
)
def test_minutes(text, found):
    assert cluster.time_limit(text) == found


def test_no_torch_is_needed():
    code = (
        "import sys; sys.modules['torch'] = None; from fewstep.environment import machine; machine.packages()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slurm
def test_on_a_cluster(cluster, monkeypatch, tmp_path):
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, cluster.env[name])

    def found(resources: dict, name: str, **default) -> Check:
        sizes = {"default-resources": default, "set-resources": {"train": resources}, "set-threads": {}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**SLURM, **sizes}))
        (check,) = checks(tmp_path, name)
        return check

    fits = {"gpu": 2, "runtime": 30, "mem_mb": 4000, "nodes": 2}
    gpu = "partition gpu"
    assert found(fits, gpu, slurm_partition="gpu").state == "ok"
    assert found({"gres": "gpu:fake:2"}, gpu, slurm_partition="gpu").state == "ok"
    assert "2 GPUs a node, a rule asks 8" in found({"gpu": 8}, gpu, slurm_partition="gpu").text
    assert "2 nodes, a rule asks 4" in found({"nodes": 4}, gpu, slurm_partition="gpu").text
    assert "4000 MB a node, a rule asks 9000" in found({"mem_mb": 9000}, gpu, slurm_partition="gpu").text
    assert "allows 30 minutes" in found({"runtime": 90}, gpu, slurm_partition="gpu").text
    assert "one of cpu, gpu" in found(fits, "partition none", slurm_partition="none").text
    assert "wait for ever" in found(fits, "partition scavenge", slurm_partition="scavenge").text
    assert found(fits, "default partition").state == "ok"
    for name in ("job status", "job arrays", "account"):
        assert found(fits, name).state == "ok"
    assert "needs accounting" in found(fits, "efficiency report").text
