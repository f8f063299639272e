"""UCGM, RCGM and TwinFlow in the plan: stages, marks, samplers, and what is refused."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config, teacher_file, unmarked

from fewstep.bench.estimate import parameters
from fewstep.config import ConfigError
from fewstep.config.base import merge

METHODS = ["ucgm-multistep", "ucgm", "ucgm-multistep-sdvae", "ucgm-sdvae", "ucgm-lightningdit", "ucgm-sit"]
METHODS += ["rcgm", "rcgm-sdvae", "twinflow"]


def over(**files):
    return make_plan(merge(raw_config(), {"overrides": files}))


@pytest.mark.parametrize("method", METHODS)
def test_every_hyper_parameter_has_a_mark(paper_plan, method):
    assert unmarked(paper_plan.run(method)) == []


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("ucgm", "ucgm-multistep"),
        ("ucgm-sdvae", "ucgm-multistep-sdvae"),
        ("rcgm", "ucgm-multistep"),
        ("rcgm-sdvae", "ucgm-multistep-sdvae"),
    ],
)
def test_few_steps_start_from_many(paper_plan, method, first):
    """As the same network, a second time apart; guided by what the first stage has learned, no further."""
    run, teacher = paper_plan.run(method), paper_plan.run(first)
    assert teacher_file(paper_plan, f"{method}/base") == [paper_plan.model(first)]
    assert teacher_file(paper_plan, f"{first}/base") == []
    assert run.backbone.model_copy(update={"target_time": False}) == teacher.backbone
    assert run.backbone.target_time == method.startswith("rcgm")
    assert run.tokenizer == teacher.tokenizer and run.guidance.scale == 1
    assert run.train.optimizer.name == "radam" and teacher.train.optimizer.name == "adamw"
    assert teacher.loss.ratio == 0 and teacher.loss.enhance.reference == "own"


@pytest.mark.parametrize(
    ("method", "first", "zeta"), [("ucgm-lightningdit", "teacher", 3.0), ("ucgm-sit", "teacher-sit", 1.7)]
)
def test_published_models_are_tuned_as_released(paper_plan, method, first, zeta):
    """From frozen weights without guidance, which they get from predictions with and without label."""
    run = paper_plan.run(method)
    assert teacher_file(paper_plan, f"{method}/base") == [paper_plan.model(first)]
    assert run.backbone == paper_plan.run(first).backbone
    assert run.guidance.scale == 1 and run.recipe.label_dropout == 0.1
    loss, enhance = run.loss, run.loss.enhance
    assert (enhance.reference, enhance.difference, enhance.zeta) == ("teacher", "reference", zeta)
    assert (enhance.start, enhance.beyond) == (0.25, 0.5)
    assert (loss.ratio, loss.huber, loss.times.alpha, loss.times.beta) == (1, 5, 1, 0.8)
    train, optimizer = run.train, run.train.optimizer
    assert (train.steps, train.global_batch_size, train.ema.decay) == (800, 1024, 0.99)
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.clip) == (
        "radam",
        1e-4,
        [0.9, 0.999],
        0.1,
    )
    (cell,) = {key for key in paper_plan.tables["ucgm-table"].all_cells if key.method == method}
    sampler = paper_plan.parts.samplers[cell.sampler].ucgm
    assert (cell.steps, sampler.condition, sampler.rho, sampler.gaps) == (2, "end", 1.0, [0.001, 0.6])


def test_the_size_in_print(paper_plan):
    """674.9 M trainable weights and the positions."""
    assert parameters(paper_plan.run("ucgm-sdvae").backbone) == pytest.approx(675e6, rel=0.003)


def test_the_samplers_of_the_table(paper_plan, demo_plan):
    for plan in (paper_plan, demo_plan):
        asked = {
            (key.method, key.steps): plan.parts.samplers[key.sampler]
            for key in plan.tables["ucgm-table"].all_cells
        }
        few = asked["ucgm", 2].ucgm
        assert (few.condition, few.rho, few.gaps) == ("end", 1.0, [0.001, 0.3])
        many = asked["ucgm-multistep", 60].ucgm
        assert (many.condition, many.kappa, many.schedule) == ("velocity", 0.5, [1.17, 0.8, 1.1])
    guided = paper_plan.parts.samplers["ucgm-lightningdit"]
    assert guided.guidance == paper_plan.parts.samplers["euler-lightningdit"].guidance


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"rcgm": {"backbone": "tit-xl1"}}, r"rcgm\.loss: .*target_time: true"),
        ({"twinflow": {"backbone": "lightningdit-xl1-teacher"}}, r"twinflow\.loss: .*target_time: true"),
        ({"ucgm": {"teacher": False}}, r"ucgm\.loss\.enhance\.reference: teacher, but teacher: false"),
    ],
)
def test_what_does_not_fit_is_refused(methods, message):
    with pytest.raises(ConfigError, match=message):
        over(methods=methods)


def test_a_network_of_one_time_does_not_jump_to_inner_times():
    change = {"ucgm-table": {"rows": {"few-vavae": {"sampler": "ucgm-any"}}}}
    with pytest.raises(ConfigError, match=r"rows\.few-vavae: sampler 'ucgm-any' jumps to inner times"):
        over(tables=change)
