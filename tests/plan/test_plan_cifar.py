"""CIFAR-10 at the paper's scale: planned, not run."""

from __future__ import annotations

import re

import pytest
from configs import behind, make_plan, raw_config, teacher_file, unmarked, wildcard_values
from test_plan_targets import dry_run


def test_the_table_trains_both_methods_on_pixels_from_scratch(paper_plan):
    cells = paper_plan.tables["dumo-table3"].all_cells
    assert {(key.method, key.sampler, key.steps, key.protocol) for key in cells} == {
        ("meanflow-cifar10", "cm", 1, "cifar10"),
        ("dumo-cifar10", "cm", 1, "cifar10"),
        ("dumo-cifar10", "cm", 2, "cifar10"),
    }
    found = behind(paper_plan, "dumo-table3")
    assert wildcard_values(found["fetch"], "asset") == {"cifar10", "inception-2015"}
    assert found["manifest"] == [{"latents": "cifar10"}]
    assert found["reference"] == [{"protocol": "cifar10"}]
    for name in ("meanflow-cifar10/base", "dumo-cifar10/base"):
        run = paper_plan.runs[name]
        assert teacher_file(paper_plan, name) == [] and run.guidance is None
        assert not run.backbone.conditional and run.recipe.label_dropout == 0
        assert unmarked(run) == []
    assert "dumo-cifar10" not in paper_plan.shared_models, "nothing starts from it"
    assert paper_plan.run("dumo-cifar10").backbone.outputs == 2


def test_meanflow_is_the_original_configuration_of_its_release(paper_plan):
    """Both times of logit-normal(-2, 2) from noise to data; c is 1e-3 beside a sum over the pixels there."""
    run = paper_plan.run("meanflow-cifar10")
    assert (run.loss.times.mean, run.loss.times.std) == (2.0, 2.0)
    assert run.loss.norm_constant == pytest.approx(1e-3 / (3 * 32 * 32), rel=2e-3)
    assert run.train.steps == 16_000 * 49 and run.train.precision == "no"


def test_it_is_evaluated_against_the_training_images(paper_plan):
    protocol = paper_plan.parts.protocols["cifar10"]
    latents = paper_plan.parts.latents[protocol.reference_latents]
    assert (protocol.images, protocol.labels) == (50_000, "random")
    assert paper_plan.parts.datasets[latents.dataset].images == 50_000


def test_the_demo_has_no_such_table(demo_plan):
    assert "dumo-table3" not in demo_plan.config.tables


@pytest.mark.slow
def test_dry_run(tmp_path):
    out = dry_run("--profile", "profiles/slurm", "--directory", str(tmp_path), "results/dumo-table3.csv")
    jobs = {
        "fetch": 2,
        "encode": 4,
        "manifest": 1,
        "train": 2,
        "sample": 3,
        "reference": 1,
        "score": 3,
        "table": 1,
    }
    for rule, count in jobs.items():
        assert re.search(rf"^{rule} +{count}$", out, re.MULTILINE), (rule, out)


def test_a_network_of_another_size_is_refused():
    raw = raw_config()
    raw["overrides"] = {
        "settings": {"backbones": {"unet-cifar10": {"shape": [3, 64, 64], "attention": [16]}}}
    }
    with pytest.raises(
        ValueError, match=r"backbones\.unet-cifar10\.shape: \[3, 64, 64\], but latents cifar10"
    ):
        make_plan(raw)
