"""The doctor, on this machine and on the test cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from configs import ROOT, make_plan, raw_config

from fewstep import doctor
from fewstep.config.base import read_yaml
from fewstep.environment import Check, Profile, cluster, durations, examine, machine, profiles_of
from fewstep.environment.profile import gpus_of

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
    assert machine.gpus(Profile({"set-resources": {"train": {"gres": "gpu:h100:8"}}})).state == "fail"


@pytest.mark.parametrize(
    ("lines", "state", "text"),
    [
        (
            ["NVIDIA H100 80GB HBM3, 81559, 9.0"] * 2,
            "ok",
            "2 visible, the profile uses 2; NVIDIA H100 80GB HBM3 with 80 GiB",
        ),
        (
            ["Tesla V100-SXM2-16GB, 16384, 7.0"] * 2,
            "warn",
            "2 visible, the profile uses 2; Tesla V100-SXM2-16GB with 16 GiB; Tesla V100-SXM2-16GB computes "
            "bf16 slowly or not at all: set precision: fp16 in the recipes that you train (settings.yaml)",
        ),
        (["NVIDIA GB10, [N/A], 12.1"] * 2, "ok", "2 visible, the profile uses 2"),
        (
            ["NVIDIA H100, 81559, 9.0"],
            "fail",
            "1 visible, the profile uses 2: install the driver, or lower gpu",
        ),
    ],
)
def test_gpus_with_their_memory(lines, state, text, monkeypatch):
    monkeypatch.setattr(machine, "run_command", lambda *_: "\n".join(lines))
    check = machine.gpus(Profile({"set-resources": {"train": {"gpu": 2}}}))
    assert check.state == state and check.text.startswith(text)


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
    profile = Profile({"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 20})
    assert cluster.job_status(profile, "MinJobAge = 300 sec").state == "ok"
    short = cluster.job_status(profile, "MinJobAge = 30 sec")
    assert short.state == "fail" and "or less" in short.text
    assert cluster.job_status(Profile({}), "AccountingStorageType = accounting_storage/none").state == "fail"
    assert (
        cluster.job_status(Profile({}), "AccountingStorageType = accounting_storage/slurmdbd").state == "ok"
    )


def test_job_arrays(paper_plan):
    """What version 2.8 of the executor would wait for for ever."""

    def check(**changes: object) -> Check:
        (found,) = cluster.job_arrays(Profile({**SLURM, **changes}), paper_plan)
        return found

    assert check().state == "ok"
    few = check(jobs=100)
    assert few.state == "fail" and "shards and 100 jobs; Snakemake would wait for ever" in few.text
    assert "sacct" in check(**{"slurm-status-command": "sacct"}).text
    assert not list(cluster.job_arrays(Profile({"jobs": 1}), paper_plan))


@pytest.fixture
def a_cluster(monkeypatch):
    """Answers of Slurm's commands: a small partition and a large one."""
    answers = {"-o %R": "small\nlarge\n", "-p small": "2|8|4000|gpu:2\n", "-p large": "2|64|500000|gpu:8\n"}
    monkeypatch.setattr(cluster.shutil, "which", lambda tool: f"/usr/bin/{tool}")

    def answer(*words: str) -> str:
        if words[1:] == ("show", "config"):
            return "MinJobAge = 300 sec"
        if words[:3] == ("scontrol", "show", "partition"):
            return "MaxTime=1-00:00:00"
        return next((text for asked, text in answers.items() if asked in " ".join(words)), "")

    monkeypatch.setattr(cluster, "run_command", answer)


def test_odd_numbers_of_jobs(paper_plan):
    (check,) = cluster.job_arrays(Profile({**SLURM, "jobs": "unlimited"}), paper_plan)
    assert check.state == "ok"


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("runtime: 240 * attempt", {"runtime": 720}),
        ("runtime: 4h", {"runtime": 240}),
        ('runtime: "2d"', {"runtime": 2880}),
        ("runtime: \"'90 min'\"", {"runtime": 90}),
        ("runtime: 1.5h", {"runtime": 90}),
        ("runtime: 90.4", {"runtime": 90}),
        ("runtime: min(60 * 2 ** attempt, 5)", {"runtime": None}),
        ("runtime: max(60, 100 * attempt) + threads", {"runtime": 308}),
        ("runtime: 2*input.size_mb", {"runtime": None}),
        ("runtime: 9 / 0", {"runtime": None}),
        ("runtime: true", {"runtime": 1}),
        ("runtime: [60]", {"runtime": None}),
        ("mem: 64GB", {"mem_mb": 64000}),
        ("mem: 1 GiB", {"mem_mb": 1074}),
        ("mem_mib: 1000", {"mem_mb": 1049}),
        ("mem: lots", {"mem_mb": None}),
        ("slurm_partition: a,b", {"slurm_partition": "a,b"}),
        ("slurm_partition: \"'a'\"", {"slurm_partition": "a"}),
        ("slurm_extra: \"'--qos=x --signal=TERM@300'\"", {"slurm_extra": "--qos=x --signal=TERM@300"}),
        ("constraint: a100|h100", {"constraint": "a100|h100"}),
        ("gpu: 4 if attempt > 1 else 2", {"gpu": None}),
        ("gres: gpu:h100:8", {"gres": "gpu:h100:8"}),
        ("gres: shard:4", {"gres": "shard:4"}),
    ],
)
def test_odd_values_of_resources(a_cluster, entry, values):
    """In every place where a profile may give them; as Snakemake reads them, or not checked."""
    name, value = next(iter(yaml.safe_load(entry).items()))
    places = [
        {"set-resources": {"train": {name: value}}},
        {"set-resources": [f"train:{name}={value}"]},
        {"default-resources": {name: value}},
        {"default-resources": [f"{name}={value}"]},
    ]
    for place in places:
        profile = Profile({**place, "set-threads": {"train": 8}})
        found = profile.resources("train", attempt=3)
        assert {key: found[key] for key in values} == values, place
        assert bool(profile.unknown()) is (None in values.values())
        assert gpus_of(found) in (None, 0, 8)
        assert_checked({**SLURM, "slurm-array-jobs": "", **place})


def assert_checked(entries: dict) -> None:
    """What depends on a profile copes with it."""
    profile = Profile(entries)
    found = [*durations.check_durations(profile, list(LINES.values())), machine.gpus(profile)]
    found += cluster.check_cluster(profile, None)
    assert "partition" in " ".join(check.name for check in found)


@pytest.mark.parametrize(
    "odd",
    [
        {"default-resources": None, "set-resources": None, "set-threads": None},
        {"default-resources": [], "set-threads": ["train=8", "sample=2 * attempt"]},
        {"set-resources": "train:gpu=8", "default-resources": "runtime=60"},
        {"jobs": "unlimited", "retries": "3", "cores": "all"},
        {"slurm-init-seconds-before-status-checks": "20"},
        {"quiet": ["host"], "executor": None},
    ],
)
def test_odd_profiles(a_cluster, tmp_path, odd):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**SLURM, "slurm-array-jobs": "", **odd}))
    assert_checked(dict(Profile.read([tmp_path]).entries))


def test_odd_values_on_a_cluster(a_cluster):
    """Two partitions, one of which fits; the last attempt counts."""

    def found(**train: object) -> dict[str, str]:
        both = {"default-resources": {"slurm_partition": "small,large"}, "set-resources": {"train": train}}
        profile = Profile({"executor": "slurm", "slurm-status-command": "squeue", "retries": 2, **both})
        made = cluster.check_cluster(profile, None)
        return {check.name: check.state for check in made if check.name.startswith("partition")}

    assert found(gpu=8) == {"partition small": "warn", "partition large": "ok"}
    assert found(gpu=16) == {"partition small": "fail", "partition large": "fail"}
    assert found(runtime="480 * attempt") == {"partition small": "ok", "partition large": "ok"}
    assert found(runtime="481 * attempt") == {"partition small": "fail", "partition large": "fail"}


LINES = {
    "train": {"name": "train", "longest": "960", "unit": "GPU-hours"},
    "score": {"name": "score", "longest": "2", "unit": "GPU-hours"},
    "table": {"name": "table", "longest": "", "unit": ""},
}


@pytest.mark.parametrize(
    ("rule", "resources", "retries", "remedy"),
    [
        ("train", {"gpu": 8, "runtime": 1440}, 4, ""),
        (
            "train",
            {"gpu": 8, "runtime": 1440},
            3,
            "set retries to 4 or more, or set-resources.train.runtime to more",
        ),
        ("train", {"gres": "gpu:h100:4", "nodes": 2, "runtime": "1d"}, 4, ""),
        ("train", {"gpu": 8, "runtime": "720 * attempt"}, 3, ""),
        ("train", {"gpu": 8, "runtime": "input.size_mb"}, 0, ""),
        ("train", {"gpu": 8}, 0, ""),
        (
            "score",
            {"gpu": 1, "runtime": 119},
            4,
            "runtime allows 119 minutes: set set-resources.score.runtime to 120 or more",
        ),
        ("score", {"gpu": 1, "runtime": 120}, 0, ""),
        ("table", {"runtime": 1}, 0, ""),
    ],
)
def test_planned_durations(rule, resources, retries, remedy):
    """960 GPU-hours are five days on eight GPUs; what does not resume has to end in one attempt."""
    profile = Profile({"set-resources": {rule: resources}, "retries": retries})
    (check,) = durations.check_durations(profile, [LINES[rule]])
    assert check.state == ("warn" if remedy else "ok")
    assert remedy in check.text and "\n" not in check.text


@pytest.mark.parametrize("overlays", [[], ["slurm-multinode"]])
def test_table_1_ends_with_the_shipped_profile(overlays):
    plan = make_plan(raw_config() | {"targets": ["table1"]})
    profile = Profile.read([ROOT / f"profiles/{name}" for name in ["slurm", *overlays]])
    lines = machine.costs(plan)
    assert {line["name"] for line in lines} >= {"encode", "train", "sample", "score", "reference"}
    assert [check.text for check in durations.check_durations(profile, lines) if check.state != "ok"] == []


def test_an_overlay_replaces_entries(tmp_path):
    profile = ROOT / "profiles/slurm"
    (tmp_path / "config.yaml").write_text("executor: local\n")
    named = {check.name for check in examine([profile, tmp_path])}
    assert "GPUs" in named and "Slurm" not in named


def test_models_that_would_be_trained_again(demo_plan, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = Path(demo_plan.model("teacher"))
    (manifest,) = demo_plan.inputs("train", {"run": "teacher/base", "seed": "0"})["latents"]
    for number, path in enumerate([Path(manifest), model]):
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 + number, 1000 + number))
    assert not list(machine.copied(demo_plan))
    os.utime(model, (900, 900))
    (check,) = machine.copied(demo_plan)
    assert check.state == "warn" and str(model) in check.text and "--touch" in check.text


def test_images_added_to_an_own_folder(tmp_path):
    folder = tmp_path / "birds"
    (folder / "a").mkdir(parents=True)
    record = tmp_path / "birds.json"
    record.write_text(json.dumps({"files": [{"name": "a/1.png"}]}))
    (folder / "a/1.png").touch()
    assert machine.added_or_removed(record) == ""
    (folder / "a/2.png").touch()
    assert "1 files more" in machine.added_or_removed(record)
    assert "snakemake -R fetch" in machine.added_or_removed(record)
    record.write_text("[]")
    assert "cannot be read" in machine.added_or_removed(record)


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
