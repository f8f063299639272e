"""Real images in the plan: which data set they come from, and what a figure of samples costs."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config

from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.config.specs import ExamplesSpec
from fewstep.plan.targets import check


def changed(preset: str | None, **changes) -> dict:
    return merge(raw_config(preset), changes)


@pytest.mark.parametrize(
    ("preset", "asset", "classes"),
    [(None, "imagenet-train", 10), ("demo", "digits", 10), ("small", "imagenet-train", 10)],
)
def test_the_default_figure_has_the_images_of_the_rows_data_set(preset, asset, classes):
    plan = make_plan(raw_config(preset))
    assert "samples" in plan.wanted
    assert plan.inputs("figure", {"table": "samples"})["real"] == [plan.file("examples", table="samples")]
    found = plan.inputs("examples", {"table": "samples"})
    assert found["source"] == [plan.file("record", asset=asset)] and found["prompts"] == []
    spec = plan.spec("examples", "samples")
    assert isinstance(spec, ExamplesSpec)
    assert spec.labels == [*range(classes)] and spec.prompts is None


@pytest.mark.parametrize("preset", [None, "demo", "small"])
def test_figure_1_has_sampled_all_of_it(preset):
    both, one = (
        make_plan(changed(preset, targets=targets)).jobs()
        for targets in (["figure1", "samples"], ["figure1"])
    )
    assert {(job.stage, job.key["table"]) for job in both.keys() - one.keys()} == {
        ("examples", "samples"),
        ("figure", "samples"),
    }


def test_captions_are_found_by_their_prompts(demo_plan):
    found = demo_plan.inputs("examples", {"table": "figure7"})
    assert found["source"] == found["prompts"] == [demo_plan.file("record", asset="scenes")]
    spec = demo_plan.spec("examples", "figure7")
    assert isinstance(spec, ExamplesSpec) and spec.prompts is not None
    assert spec.labels == demo_plan.config.tables["figure7"].classes


def test_a_data_set_that_nothing_else_needs_is_not_asked_for():
    """Published weights need none; latents that were encoded elsewhere have no images."""
    elsewhere = {"latents": {"imagenet256-vavae": {"dataset": "imagenet256-latents"}}}
    for change in ({"weights": "released"}, {"overrides": {"settings": elsewhere}}):
        plan = make_plan(changed(None, targets=["samples"], **change))
        assert plan.wanted == ["samples"] and "imagenet-train" not in plan.assets()
        assert plan.inputs("figure", {"table": "samples"})["real"] == []
        with pytest.raises(ConfigError, match=r"target .*samples\.tar: real: it shows no real images"):
            check(plan, plan.file("examples", table="samples"))


def test_real_images_stand_beside_samples_only():
    change = {"overrides": {"tables": {"figure6": {"real": True}}}}
    with pytest.raises(ConfigError, match="real images stand above kind: samples, not grid"):
        make_plan(changed("demo", **change))
