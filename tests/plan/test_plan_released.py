"""Published weights as rows, teachers of several kinds, and the preset between demo and paper."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from configs import ROOT, behind, make_plan, raw_config, teacher_file, unmarked, wildcard_values

from fewstep.config import ConfigError
from fewstep.config.backbones import LightningDiT
from fewstep.config.base import merge
from fewstep.config.specs import TableSpec
from fewstep.plan import Plan
from fewstep.plan.marks import hyperparameter_sources
from fewstep.reporting.rows import fill_table


@pytest.fixture(scope="module")
def released() -> Plan:
    return make_plan({**raw_config(), "weights": "released"})


def statuses(plan: Plan, table: str) -> dict[str, str]:
    """Row -> status, with the metrics of every cell at hand."""
    asked = plan.spec("table", table)
    assert isinstance(asked, TableSpec)
    found = {
        key: {
            "cell": key,
            "fid": 1.7,
            "is": 290.0,
            **{"kid": 1e-4, "precision": 0.8, "recall": 0.6},
            "code": None if plan.run(key.method, key.variant).adopted else "now",
            "status": "released" if plan.run(key.method, key.variant).adopted else "trained",
        }
        for key in plan.tables[table].all_cells
    }
    return {
        row.row: row.status
        for row in fill_table(asked, found, lambda entry: entry["code"] not in (None, "now")).rows
    }


def test_released_weights_fill_their_rows_and_the_others_are_reported(released):
    found = statuses(released, "table1")
    assert {row for row, status in found.items() if status == "released weights"} == {
        *("lightningdit", "lightningdit-guided", "facm")
    }
    assert set(found.values()) == {"released weights", "reported only"}
    assert not released.inputs("figure", {"table": "figure4"})["curves"]


def test_weights_are_trained_unless_released_is_asked_for(paper_plan, released):
    assert statuses(paper_plan, "table1")["facm"] == "reproduced"
    assert not paper_plan.run("facm").adopted and released.run("facm").adopted
    assert re.fullmatch(released.runs_pattern("adopt"), "facm/base")
    assert released.inputs("adopt", {"run": "facm/base", "seed": "0"})["asset"] == [
        "data/assets/facm-250ep.json"
    ]


def test_released_weights_need_no_data_set(released):
    """Normalisation comes with the tokenizer; only training reads latents."""
    found = behind(released, "table1", "facm-released")
    assert not {"encode", "manifest"} & found.keys()
    assert wildcard_values(found["fetch"], "asset") == {
        *("vavae-f16d32", "lightningdit-xl1-800ep", "facm-100ep", "facm-250ep", "facm-400ep"),
        *("inception-2015", "facm-reference", "adm-reference"),
    }


def test_released_models_calibrate_in_either_mode(paper_plan, released):
    for plan in (paper_plan, released):
        assert set(statuses(plan, "facm-released").values()) == {"released weights"}
        assert {key.seed for key in plan.tables["facm-released"].all_cells} == {0}
    rows = {
        row.id: (row.steps, row.reported["fid"]) for row in paper_plan.config.tables["facm-released"].rows
    }
    assert rows == {"100ep": ([2], [1.32]), "250ep": ([1], [1.76]), "400ep": ([1], [1.7])}


def test_targets_with_nothing_behind_them_are_left_out(released):
    assert not {"results/figure4.png", "results/figure6.png"} & set(released.targets())
    assert [entry.claim.id for entry in released.claims] == ["guidance-helps-teacher"]
    assert released.spec_text("claims", "claims") and released.spec_text("report", "report")


def test_an_ablation_does_not_take_the_base_weights():
    row = {"method": "facm", "variant": "loose", "set": {"loss": {"clamp": None}}}
    raw = {**raw_config(), "weights": "released"}
    plan = make_plan(merge(raw, {"overrides": {"tables": {"table4": {"rows": {"cm": row}}}}}))
    assert plan.run("facm").adopted and not plan.run("facm", "loose").adopted
    assert statuses(plan, "table4")["cm"] == "reported only"


def test_extra_metrics_of_a_table_are_of_one_protocol(paper_plan, demo_plan):
    assert paper_plan.tables["facm-released"].extra_metrics == {
        "is": "decm-fid50k",
        **dict.fromkeys(("kid", "precision", "recall"), "common"),
    }
    assert set(demo_plan.tables["table1"].extra_metrics.values()) == {"digits"}
    assert '"extra_metrics": {\n  "kid": "common"' in paper_plan.spec_text("table", "table1")
    released = make_plan({**raw_config(), "weights": "released"})
    assert released.tables["table1"].extra_metrics == paper_plan.tables["table1"].extra_metrics


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"table4": {"metrics": ["precison"]}},
            ["overrides.tables.table4.metrics", "did you mean 'precision'?"],
        ),
        ({"table4": {"metrics": ["kid", "kid"]}}, ["table4.yaml", "name one twice"]),
        ({"table4": {"metrics": ["fid"]}}, ["table4.yaml", "the table's own metric"]),
        ({"figure1": {"metrics": ["kid"]}}, ["figure1.yaml", "kind: table, sweep, not of curve"]),
    ],
)
def test_extra_metrics_that_nobody_computes(change, words):
    with pytest.raises(ConfigError) as error:
        make_plan(merge(raw_config(), {"overrides": {"tables": change}}))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_the_three_teachers(paper_plan):
    settings = {name: paper_plan.run(name) for name in ("teacher", "teacher-64ep", "teacher-facm")}
    assert {name: run.backbone.qk_norm for name, run in settings.items()} == {
        "teacher": False,
        "teacher-64ep": False,
        "teacher-facm": True,
    }
    assert teacher_file(paper_plan, "facm/base") == [paper_plan.model("teacher-facm")]
    assert teacher_file(paper_plan, "decm/base") == [paper_plan.model("teacher")]


@pytest.mark.parametrize("name", ["imagenet256-vavae-facm", "imagenet256-vavae-64ep"])
def test_every_method_can_start_from_another_teacher(name):
    raw = merge(raw_config(), {"replace_recipes": {"imagenet256-vavae": name}})
    plan = make_plan(raw)
    for method in ("cd", "decm", "meanflow", "scm"):
        run = plan.run(method)
        (teacher,) = teacher_file(plan, run.name)
        name = teacher.split("/")[1]
        assert name != "teacher"
        assert isinstance(run.backbone, LightningDiT)
        assert run.backbone == plan.run(name).backbone.model_copy(update={"target_time": True})


def test_only_a_student_without_a_second_time_has_its_velocity_beyond(paper_plan, demo_plan):
    assert '"expanded": true' in paper_plan.spec_text("sample", f"facm/base/euler-50/{images(paper_plan)}")
    assert '"expanded": false' in paper_plan.spec_text("sample", f"decm/base/euler-50/{images(paper_plan)}")
    assert '"expanded": false' in demo_plan.spec_text("sample", f"facm/base/euler-50/{images(demo_plan)}")


def images(plan: Plan) -> str:
    return next(iter(plan.image_sets))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"methods": {"teacher": {"weights": {"tokenizer": "digits-ae"}}}},
            ["teacher.weights.tokenizer", "lightningdit-xl1-800ep", "digits-ae", "vavae-f16d32"],
        ),
        ({"methods": {"facm": {"released": {"file": "250.pt"}}}}, ["facm.released.file", "250ep-stg2.pt"]),
        ({"methods": {"facm": {"loss": {"anchor": "target"}}}}, ["facm.loss", "target_time"]),
        (
            {"methods": {"facm": {"recipe": "imagenet256-vavae"}}},
            ["facm.loss.anchor", "loss.expanded: true", "anchor: target"],
        ),
        ({"methods": {"facm": {"samplers": {"default": "mix"}}}}, ["'mix'", "target_time"]),
        ({"methods": {"decm": {"provenance": {"loss.frek": "paper"}}}}, ["decm.provenance", "'loss.freq'"]),
        (
            {"methods": {"decm": {"provenance": {"loss.freq": "blog"}}}},
            ["decm.provenance", "'blog'", "code"],
        ),
    ],
)
def test_what_cannot_work_is_one_error(overrides, words):
    with pytest.raises(ConfigError) as error:
        make_plan(merge(raw_config(), {"overrides": overrides}))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_every_hyper_parameter_at_paper_scale_has_a_mark(paper_plan):
    runs = [paper_plan.run(name) for name in paper_plan.config.methods]
    trained = [run for run in runs if run.recipe.scale == "paper" and not run.adopted]
    assert {run.method for run in trained} > {"cd", "decm", "facm", "meanflow", "scm"}
    assert {run.name: unmarked(run) for run in trained if unmarked(run)} == {}


def test_marks_reach_the_report_and_the_nearest_counts(paper_plan, demo_plan):
    report = paper_plan.spec("report", "report")
    shown = report.methods["decm"].parameters
    found = {entry.key: (entry.value, entry.mark) for entry in shown["paper"]}
    assert found["loss.freq"] == ("3", "paper")
    adapters = {entry.key: entry.mark for entry in hyperparameter_sources(paper_plan.run("decm-t2i"))}
    assert (adapters["lora.rank"], adapters["lora.targets"]) == ("paper", "inferred")
    fit = {entry.key: entry.mark for entry in hyperparameter_sources(paper_plan.run("sd35-smooth"))}
    assert set(fit) == {f"reembed.{key}" for key in ("steps", "lr", "limit", "tangent_limit", "seed")}
    assert set(fit.values()) == {"inferred"}
    assert found["loss.clamp"] == ("1.0", "code")
    assert found["loss.weight_left"] == ("1.0", "inferred")
    assert found["train.steps"] == ("312750", "paper")
    assert found["train.optimizer.betas"] == ("0.9, 0.999", "code")
    assert found["guidance.interval"] == ("0.125, 1.0", "code")
    assert "train.log_every" not in found
    assert not report.methods["teacher"].parameters, "adopted: not trained here"
    both = demo_plan.spec("report", "report").methods["decm"].parameters
    assert both["paper"] == shown["paper"] and list(both) == ["paper", "demo"]
    assert {entry.mark for entry in both["demo"] if entry.key == "train.steps"} == {None}


def test_paper_values(paper_plan):
    """Against the research: DE-CM section 4 and FACM's release."""
    train = paper_plan.run("decm").train
    assert (train.steps, train.global_batch_size) == (250 * 1251, 1024)
    assert (train.optimizer.lr, train.optimizer.betas, train.optimizer.clip) == (1e-4, [0.9, 0.999], 1.0)
    assert train.ema.model_dump() == {"kind": "power", "sigma_rel": 0.2}
    for method in ("decm", "facm", "meanflow", "scm", "cd"):
        run = paper_plan.run(method)
        assert run.train == train
        assert (run.guidance.scale, run.guidance.interval) == (1.75, [0.125, 1.0])
    laws = {variant: paper_plan.run("decm", variant).loss.times for variant in ("arctan", "log")}
    assert [(law.law, law.mean, law.std) for law in laws.values()] == [
        ("arctan", -0.8, 1.6),
        ("logit-normal", 0.8, 1.6),
    ]


def test_the_small_preset():
    plan = make_plan(raw_config("small"))
    run = plan.run("decm")
    assert (run.recipe.scale, run.backbone.depth, run.backbone.width) == ("small", 12, 768)
    assert not [job for job in plan.jobs() if job.stage == "adopt"]
    assert teacher_file(plan, "facm/base") == ["results/small/teacher/base/0/model.safetensors"]
    assert all(target.startswith("results/small/") for target in plan.targets())
    latents = {"latents": "imagenet256-vavae"}
    assert plan.file("manifest", **latents) == make_plan(raw_config()).file("manifest", **latents)
    assert set(statuses(plan, "table1").values()) == {"miniature", "reported only"}


def dry_run(directory, *arguments: str) -> dict[str, int]:
    """Jobs by rule."""
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", *arguments]
    done = subprocess.run([*command, "--directory", str(directory)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return {
        rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.M)
    }


@pytest.mark.slow
def test_released_weights_plan_without_training(tmp_path):
    jobs = dry_run(
        *(tmp_path, "--profile", "profiles/slurm", "results/table1.csv", "--config", "weights=released")
    )
    assert not {"train", "encode", "manifest"} & jobs.keys()
    assert jobs["fetch"] == 6, "two models, the tokenizer, the extractor, two references"
    assert jobs["adopt"] == 2, "the teacher and FACM"
    assert jobs["sample"] == 4 and jobs["score"] == 8


@pytest.mark.slow
def test_calibration_trains_nothing(tmp_path):
    jobs = dry_run(tmp_path, "--profile", "profiles/slurm", "results/facm-released.csv")
    assert not {"train", "encode", "manifest"} & jobs.keys()
    assert jobs["adopt"] == jobs["sample"] == 3


@pytest.mark.slow
def test_small_plans_with_a_teacher_of_its_own(tmp_path):
    jobs = dry_run(tmp_path, "--profile", "profiles/small", "results/small/table1.csv")
    assert "adopt" not in jobs
    assert jobs["train"] == 5, "the teacher and four students"
