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

SLURM = read_yaml(ROOT / "profiles/slurm/config.yaml")


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def checks(profile: Path, name: str) -> list[doctor.Check]:
    return [check for check in doctor.examine(profile) if check.name.startswith(name)]


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
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    (disk,) = checks(ROOT / "profiles/local", "disk")
    assert disk.state == "fail" and disk.text.startswith("1 GB free")


def test_gpus_that_are_not_there(monkeypatch):
    monkeypatch.setattr(doctor, "ask", lambda *_: "")
    assert doctor.gpus({"set-resources": {"train": {"gres": "gpu:h100:8"}}}).state == "fail"
    monkeypatch.setattr(doctor, "ask", lambda *_: "GPU 0: H200\nGPU 1: H200\n")
    assert doctor.gpus({"set-resources": {"train": {"gpu": 2}}}).state == "ok"


def test_a_folder_of_someone_else(monkeypatch, demo_plan):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refused)
    check = doctor.folder_works(demo_plan, shared=True)
    assert check.state == "fail" and "Permission denied" in check.text


def test_a_bad_configuration_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("configfile: [nowhere.yaml]\n")
    (check,) = doctor.examine(tmp_path)
    assert check.state == "fail" and "nowhere.yaml" in check.text


def test_what_slurm_forgets():
    profile = {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 20}
    assert doctor.status(profile, "MinJobAge = 300 sec").state == "ok"
    short = doctor.status(profile, "MinJobAge = 30 sec")
    assert short.state == "fail" and "or less" in short.text
    assert doctor.status({}, "AccountingStorageType = accounting_storage/none").state == "fail"
    assert doctor.status({}, "AccountingStorageType = accounting_storage/slurmdbd").state == "ok"


@pytest.mark.parametrize(
    ("text", "found"),
    [("MaxTime=1-02:30:00 X", 1590), ("MaxTime=00:30:00", 30), ("MaxTime=UNLIMITED", None), ("", None)],
)
def test_minutes(text, found):
    assert doctor.minutes(text) == found


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None; import fewstep.doctor as d; print(d.packages().name)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slurm
def test_on_a_cluster(slurm, monkeypatch, tmp_path):
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm[name])

    def found(resources: dict, name: str, **default) -> doctor.Check:
        profile = {**SLURM, "default-resources": default, "set-resources": {"train": resources}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile))
        (check,) = checks(tmp_path, name)
        return check

    fits = {"gpu": 2, "runtime": 30}
    assert found(fits, "partition gpu", slurm_partition="gpu").state == "ok"
    assert found({"gres": "gpu:fake:2"}, "partition gpu", slurm_partition="gpu").state == "ok"
    assert "2 GPUs a node, a rule asks 8" in found({"gpu": 8}, "partition gpu", slurm_partition="gpu").text
    assert "allows 30 minutes" in found({"runtime": 90}, "partition gpu", slurm_partition="gpu").text
    assert "one of cpu, gpu" in found(fits, "partition none", slurm_partition="none").text
    assert "wait for ever" in found(fits, "partition scavenge", slurm_partition="scavenge").text
    assert found(fits, "default partition").state == "ok"
    assert found(fits, "job status").state == "ok"
