"""GET in the plan: all sizes at the paper's scale, and what a network without times cannot do."""

from __future__ import annotations

import pytest
from configs import behind, make_plan, raw_config, teacher_file, unmarked, wildcard_values

from fewstep.config import ConfigError
from fewstep.config.base import merge

SIZES = ("get-t", "get-m", "get-s", "get-b", "get-b-plus", "get-b-labels")


def over(**files):
    return make_plan(merge(raw_config(), {"overrides": files}))


def test_the_table_trains_all_sizes_from_two_teachers(paper_plan):
    table = paper_plan.tables["get-table"]
    assert {(key.method, key.variant, key.steps, key.protocol) for key in table.all_cells} == {
        *((name, "base", 1, "cifar10") for name in SIZES),
        ("get-b-labels", "long", 1, "cifar10"),
    }
    found = behind(paper_plan, "get-table")
    assert wildcard_values(found["train"], "run") == {
        *(f"{name}/base" for name in SIZES),
        "get-b-labels/long",
        "teacher-cifar10/base",
        "teacher-cifar10-labels/base",
    }
    for name in SIZES:
        run = paper_plan.run(name)
        labels = "-labels" if name.endswith("-labels") else ""
        (teacher,) = teacher_file(paper_plan, f"{name}/base")
        assert f"/teacher-cifar10{labels}/" in teacher and run.backbone.conditional == bool(labels)
        assert (run.loss.solver_steps, run.loss.solver_times, run.loss.distance) == (18, "karras", "l1")
        assert run.loss.sigma == [0.002, 80.0] and run.backbone.iterations == 6
        assert run.train.global_batch_size == (256 if labels else 128) and unmarked(run) == []
    assert paper_plan.runs["get-b-labels/long"].train.steps == 1_200_000


def test_it_is_made_when_asked_for(paper_plan, demo_plan):
    for plan in (paper_plan, demo_plan):
        assert plan.tables["get-table"].table.by_name


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"decm": {"backbone": "get-b"}}, r"decm\.loss: trains at many times, .*use loss kd"),
        ({"facm": {"backbone": "get-b"}}, r"facm\.loss: trains at many times"),
        (
            {"get-s": {"backbone": "lightningdit-xl1"}},
            r"get-s\.loss\.iterate_decay: needs a backbone of kind get",
        ),
        ({"get-s": {"teacher": False}}, r"get-s\.loss: needs a teacher"),
        ({"kd": {"teacher": "get"}}, r"kd\.backbone: teacher get has a backbone of kind get"),
        ({"get-s": {"loss": {"sigma": [2.0, 1.0]}}}, r"get-s\.loss\.sigma"),
        ({"get-s": {"loss": {"solver_steps": 1}}}, r"get-s\.loss\.solver_steps"),
    ],
)
def test_what_it_cannot_do(methods, message):
    with pytest.raises(ConfigError, match=message):
        over(methods=methods)


@pytest.mark.parametrize(("sampler", "steps"), [("cm", 2), ("euler", 4), ("jump", 1), ("ucgm-few", 1)])
def test_it_is_sampled_in_one_plain_step(sampler, steps):
    change = {"get-table": {"rows": {"s": {"sampler": sampler, "steps": [steps]}}}}
    with pytest.raises(ConfigError, match=f"rows.s: sampler '{sampler}' in {steps} steps: .*in one step"):
        over(tables=change)
