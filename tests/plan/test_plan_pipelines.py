"""Released text-to-image models in the plan: by their pipelines with weights=released, and not otherwise."""

from __future__ import annotations

import pytest
from configs import behind, make_plan, raw_config, wildcard_values

from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.config.pipelines import NEVER_RUN
from fewstep.config.specs import PipelineSampleSpec
from fewstep.plan import Plan

RELEASED = {"table2": {"sd35-medium", "sd35-turbo", "lcm", "hyper-sd"}}
RELEASED["twinflow-table1"] = {
    *("sd35-medium", "sd35-turbo", "sdxl-lcm", "sana-sprint-600m", "sana-sprint-1600m"),
    *("qwen-twinflow-long", "twinflow-z-image-turbo"),
}


def released(**overrides: object) -> Plan:
    return make_plan(merge(raw_config(), {"weights": "released", "overrides": overrides}))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return released()


@pytest.mark.parametrize("table", RELEASED)
def test_released_rows_are_sampled_and_nothing_is_trained(plan, table):
    found = behind(plan, table)
    assert not {"train", "encode", "manifest", "text", "adopt", "reembed"} & found.keys()
    assert set(plan.tables[table].runs) == RELEASED[table]
    notes = {row.id: row.note for row in plan.spec("table", table).table.rows}
    assert {row for row, note in notes.items() if NEVER_RUN in note} == RELEASED[table]
    for job in found["sample"]:
        assert plan.environment("sample", job) == "t2i"


def test_what_rows_need_is_fetched_and_no_more(plan):
    found = wildcard_values(behind(plan, "table2")["fetch"], "asset")
    hyper = {f"hyper-sdxl-{steps}" for steps in (1, 2, 4, 8)}
    assert {"sd35-medium", "sd35-large-turbo", "sdxl-base", "lcm-lora-sdxl"} | hyper <= found
    assert not {"text-to-image-2m", "twinflow-qwen-image", "sana-sprint-600m"} & found
    key = {"run": "hyper-sdxl/base", "seed": "0", "sampler": "own-scheduler", "steps": "4"}
    inputs = plan.inputs("sample", {**key, "images": plan.image_set("t2i-paper")})
    assert inputs["pipeline"] == [plan.file("record", asset=name) for name in ("sdxl-base", "hyper-sdxl-4")]
    assert inputs["model"] == inputs["text"] == [] and len(inputs["prompts"]) == 1


def test_a_pipeline_at_each_number_of_steps(plan):
    name = f"hyper-sdxl/base/own-scheduler-{{}}/{plan.image_set('t2i-paper')}"
    one, two = (plan.spec("sample", name.format(steps)) for steps in (1, 2))
    assert isinstance(one, PipelineSampleSpec) and isinstance(two, PipelineSampleSpec)
    assert (one.pipeline.scheduler.name, one.pipeline.eta) == ("TCDScheduler", 1.0)
    assert (two.pipeline.scheduler.timestep_spacing, two.pipeline.eta) == ("trailing", 0.0)
    assert two.image == [3, 1024, 1024] and not two.pipeline.at
    four = plan.spec("sample", f"twinflow-qwen-image/base/own-scheduler-4/{plan.image_set('t2i-paper')}")
    assert four.pipeline.sigmas == pytest.approx([0.999, 0.832667, 0.666333, 0.5])
    assert four.pipeline.evaluations_per_step == 1


def test_evaluations_are_those_with_guidance(plan):
    entries = {name: run.pipeline for name, run in plan.runs.items() if run.pipeline}
    assert {name for name, entry in entries.items() if entry.evaluations_per_step == 2} == {
        "sd35-medium/base"
    }


@pytest.mark.parametrize("preset", [None, "demo"])
def test_otherwise_they_are_reported_only(preset):
    plan = make_plan(raw_config(preset))
    for table in RELEASED:
        runs = plan.tables[table].runs.values()
        assert not any(run.only_pipeline or run.pipeline for run in runs)
        assert not any(NEVER_RUN in row.note for row in plan.spec("table", table).table.rows)
        assert "sdxl-base" not in wildcard_values(behind(plan, table)["fetch"], "asset")


def test_a_tried_pipeline_has_no_note():
    pipeline = {"name": "StableDiffusion3Pipeline", "asset": "sd35-large-turbo", "image": 1024, "tried": True}
    plan = released(methods={"sd35-turbo": {"pipeline": pipeline}})
    notes = {row.id: row.note for row in plan.spec("table", "table2").table.rows}
    assert NEVER_RUN not in notes["sd35-turbo"] and NEVER_RUN in notes["lcm"]


def test_every_size_and_rate_is_named(plan):
    plan = make_plan(merge(raw_config(), {"weights": "released", "targets": ["table2", "twinflow-table1"]}))
    lines = plan.spec("costs", "costs").lines
    unknown = {text for line in lines for text in line.unknown}
    assert {"no size of twinflow-qwen-image", "no size of twinflow-z-image-turbo"} <= unknown
    rates = [line.work[0].rate for line in lines if line.rule == "sample"]
    assert rates and all(rate is not None and rate.source == "estimated" for rate in rates)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "FluxPipeline"}, ["pipeline.name", "StableDiffusion3Pipeline"]),
        ({"asset": "sdxl"}, ["pipeline.asset", "'sdxl-base'"]),
        ({"custom_pipeline": "mine"}, ["pipeline.custom_pipeline", "unknown key"]),
        ({"trust_remote_code": True}, ["pipeline.trust_remote_code", "unknown key"]),
        ({"second_time": True}, ["second_time is for QwenImagePipeline, ZImagePipeline"]),
        ({"at": {2: {"timesteps": [999]}}}, ["timesteps are for StableDiffusionXLPipeline"]),
        ({"at": {2: {"sigmas": [1.0]}}}, ["sigmas has 1 values, for 1 steps, not 2"]),
        ({"at": {2: {"adapters": [{"asset": "hyper-sdxl-1", "file": "x.safetensors"}]}}}, ["unknown name"]),
        ({"adapters": [{"asset": "lcm-lora-sdxl", "file": "lora.bin"}]}, ["adapters", "file"]),
        ({"folder": "../other"}, ["pipeline.folder"]),
    ],
)
def test_what_cannot_be_is_one_error(changes, words):
    with pytest.raises(ConfigError) as error:
        released(methods={"sd35-turbo": {"pipeline": changes}})
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_method_without_loss_is_a_pipeline():
    with pytest.raises(ConfigError, match="loss is missing; only a pipeline"):
        released(methods={"sd35-turbo": {"pipeline": None}})
    with pytest.raises(ConfigError, match="train belongs to networks of ours"):
        released(methods={"sd35-turbo": {"train": {"steps": 3}}})


def test_targets_of_pipelines(plan):
    images = plan.image_set("t2i-paper")
    with pytest.raises(ConfigError, match="its sampler is 'own-scheduler'"):
        plan.spec("sample", f"sd35-turbo/base/cm-2/{images}")
    trained = make_plan(raw_config())
    with pytest.raises(ConfigError, match="weights=released"):
        trained.spec("sample", f"sd35-turbo/base/own-scheduler-4/{images}")
    with pytest.raises(ConfigError, match="no rule makes"):
        from fewstep.plan.jobs import maker

        maker(plan, plan.model("sd35-turbo"))


def test_a_protocol_without_prompts_is_refused_when_its_jobs_are_planned():
    """Inputs are asked for before specs."""
    common = make_plan(raw_config()).parts.protocols["common"]
    features = common.model_dump(exclude_none=True) | {"labels": "random"}
    plan = released(
        settings={
            "protocols": {"x-fid": features},
            "recipes": {"t2i-sd35": {"protocols": ["t2i-paper", "t2i-geneval", "t2i-dpg", "x-fid"]}},
        },
        tables={"table2": {"metrics": ["fid"]}},
    )
    with pytest.raises(
        ConfigError, match=r"\.pipeline: it is sampled from prompts, which the protocol has none of"
    ):
        behind(plan, "table2")
