"""DuMo in the plan: two heads, what samples from them, and the mixtures that are refused."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config, unmarked

from fewstep.bench.estimate import parameters
from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.plan.cells import shared_protocols


def over(**files):
    return make_plan(merge(raw_config(), {"overrides": files}))


@pytest.mark.parametrize(
    ("method", "added"), [("dumo", 2_674_960), ("dumo-512", 2_730_304), ("dumo-b2", 1_193_488)]
)
def test_the_added_head_is_a_second_final_layer(paper_plan, method, added):
    backbone = paper_plan.run(method).backbone
    one = backbone.model_copy(update={"outputs": 1})
    assert parameters(backbone) - parameters(one) == added < 0.01 * parameters(one)
    assert not backbone.target_time


@pytest.mark.parametrize("method", ["dumo", "dumo-512"])
def test_the_student_starts_as_its_teacher(paper_plan, method):
    run = paper_plan.run(method)
    teacher = paper_plan.run(run.recipe.teacher)
    assert run.backbone == teacher.backbone.model_copy(update={"outputs": 2})
    assert run.tokenizer == teacher.tokenizer


@pytest.mark.parametrize("method", ["dumo", "dumo-512", "dumo-b2", "meanflow-sdvae", "meanflow-b2"])
def test_every_hyper_parameter_has_a_mark(paper_plan, method):
    assert unmarked(paper_plan.run(method)) == []


def test_the_ablation_differs_in_nothing_but_the_method(paper_plan):
    ours, theirs = (paper_plan.run(name) for name in ("dumo-b2", "meanflow-b2"))
    assert ours.train == theirs.train and not ours.has_teacher and not theirs.has_teacher
    sizes = [parameters(run.backbone) for run in (ours, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_two_steps_meet_at_the_time_of_the_siblings(paper_plan, demo_plan):
    for plan in (paper_plan, demo_plan):
        (cell,) = [
            key for key in plan.tables["dumo-table1"].all_cells if (key.method, key.steps) == ("dumo", 2)
        ][:1]
        assert plan.parts.samplers[cell.sampler].times == [0, 0.7]


def test_images_of_512_pixels(paper_plan):
    run = paper_plan.run("dumo-512")
    dataset = paper_plan.parts.datasets[paper_plan.parts.latents[run.recipe.latents].dataset]
    assert (dataset.resolution, dataset.crop) == (512, "adm")
    factor = dataset.resolution // run.tokenizer.shape[1]
    assert factor == 8 and run.backbone.patch == 4
    assert run.recipe.protocols == ["common-512"]


@pytest.mark.parametrize("kind", ["mix", "jump"])
def test_a_flow_map_without_target_time_does_not_jump_to_inner_times(kind):
    change = {"dumo-table1": {"rows": {"dumo": {"sampler": kind, "steps": [4], "reported": {"fid": [None]}}}}}
    with pytest.raises(ConfigError, match=f"rows.dumo: sampler '{kind}' jumps to inner times"):
        over(tables=change)


def test_named_times_are_of_as_many_steps():
    change = {
        "dumo-table1": {"rows": {"dumo": {"sampler": "cm-t70", "steps": [4], "reported": {"fid": [None]}}}}
    }
    with pytest.raises(ConfigError, match="names the times of 2 steps, not of 4"):
        over(tables=change)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"dumo": {"backbone": "sit-xl2"}}, r"dumo\.loss: needs a backbone with outputs: 2"),
        ({"meanflow-sdvae": {"backbone": "sit-xl2-dual"}}, r"meanflow-sdvae\.loss: .*target_time: true"),
        ({"teacher-tit-512": {"backbone": "tit-xl4-dual"}}, r"teacher-tit-512\.loss: .*outputs: 1"),
        ({"dumo": {"loss": {"ratio": 0.9}}}, r"dumo\.loss.*one of delta, ratio"),
    ],
)
def test_networks_and_losses_that_do_not_fit(methods, message):
    with pytest.raises(ConfigError, match=message):
        over(methods=methods)


def test_a_claim_needs_a_protocol_that_evaluates_all_of_its_cells(paper_plan):
    claims = {entry.claim.id: entry for entry in paper_plan.claims}
    protocols = {name: entry.cells[0][0].protocol for name, entry in claims.items()}
    assert (protocols["decm-best-at-one"], protocols["dumo-one-step"]) == ("decm-fid50k", "common")
    ours, other, far = (paper_plan.run(name) for name in ("decm", "meanflow-sdvae", "dumo-512"))
    assert shared_protocols([ours, other], "claims") == ["common"]
    with pytest.raises(ConfigError, match=r"claims: no protocol .* common-512"):
        shared_protocols([far, other], "claims")
