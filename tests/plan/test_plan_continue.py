"""A run that continues another: what it inherits, reads and costs, and what is refused."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config

from fewstep.bench.estimate import job_line, parameters
from fewstep.config import ConfigError, digest
from fewstep.config.base import merge
from fewstep.config.specs import TrainSpec
from fewstep.plan import Plan
from fewstep.plan.costs_spec import planned

LONG = {"title": "DE-CM, longer", "recipe": "digits", "continues": "decm", "train": {"steps": 2000}}


def plan_with(**entries) -> Plan:
    overrides = {"overrides": {"methods": entries}, "targets": ["table1"]}
    return make_plan(merge(raw_config("demo"), overrides))


def refused(**entries) -> str:
    with pytest.raises(ConfigError) as error:
        plan_with(**entries)
    return str(error.value)


def test_what_it_leaves_out_is_that_of_the_other_and_its_spec_names_it():
    plan = plan_with(long={**LONG, "train": {"steps": 2000, "optimizer": {"lr": 1e-4, "decay": "cosine"}}})
    first, long = plan.run("decm"), plan.run("long")
    assert (long.loss, long.guidance, long.samplers) == (first.loss, first.guidance, first.samplers)
    assert long.train.ema == first.train.ema
    spec = plan.spec("train", "long/base/3")
    assert isinstance(spec, TrainSpec)
    assert spec.continues is not None
    before = plan.spec("train", "decm/base/3")
    assert spec.continues.model_dump() == {
        "run": "decm/base", "spec": digest(before), "steps": first.train.steps
    }  # fmt: skip
    assert "continues" not in before.model_dump()


def test_it_waits_for_the_model_of_the_same_seed_whose_state_is_kept():
    plan = plan_with(long=LONG, longest={**LONG, "continues": "long", "train": {"steps": 3000}})
    continued = {name: plan.inputs("train", {"run": f"{name}/base", "seed": "3"})["continued"] for name in
                 ("decm", "long", "longest")}  # fmt: skip
    assert continued == {
        "decm": [],
        "long": ["results/demo/decm/base/3/model.safetensors"],
        "longest": ["results/demo/long/base/3/model.safetensors"],
    }
    assert plan.continued == {"decm/base", "long/base"}
    assert plan.run("longest").loss == plan.run("decm").loss


def test_it_costs_the_added_steps():
    row = {"id": "long", "label": "longer", "method": "long"}
    table = {"kind": "table", "title": "t", "paper": "", "steps": [2], "rows": [row]}
    raw = merge(raw_config("demo"), {"targets": ["more"], "overrides": {"methods": {"long": LONG}}})
    plan = make_plan(merge(raw, {"overrides": {"tables": {"more": table}}}))
    lines = {line.run: line for line in planned(plan)[0] if line.rule == "train"}
    train = plan.run("decm").train
    images = {name: lines[f"{name}/base"].work[0].images for name in ("decm", "long")}
    added = 2000 - train.steps
    assert images == {"decm": train.steps * train.global_batch_size, "long": added * train.global_batch_size}
    assert {name: lines[f"{name}/base"].states.kept for name in images} == {"decm": True, "long": False}
    spec = plan.spec("costs", "costs")
    decm, long = (job_line(spec, lines[f"{name}/base"]) for name in images)
    network = 4 * parameters(plan.run("decm").backbone)  # of a state, four: weights, average, moments
    assert (decm.kept, long.kept) == (5 * network, network)
    assert decm.kept + decm.temporary == long.kept + long.temporary == 13 * network


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"continues": "dcem"}, ["long.continues", "unknown", "decm"]),
        ({"continues": "long"}, ["long.continues", "circle"]),
        ({"train": {"steps": 30}}, ["long.train.steps: 30, but decm, which it continues, has", "give more"]),
        ({"backbone": "lightningdit-digits-teacher"}, ["long.backbone", "decm"]),
        ({"loss": {"name": "decm", "freq": 9}}, ["long.loss", "another"]),
        (
            {"train": {"steps": 2000, "global_batch_size": 8}},
            ["long.train.global_batch_size", "optimizer.lr"],
        ),
        ({"reembed": {"of": "teacher"}}, ["continues", "reembed"]),
    ],
)
def test_what_cannot_be_continued_is_told(changes, words):
    lines = refused(long={**LONG, **changes})
    assert all(word in lines for word in words), lines
