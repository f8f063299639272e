"""SiT on SD-VAE latents: what the plan makes of it, and the mixtures that it refuses."""

from __future__ import annotations

import pytest
import torch
from configs import make_plan, raw_config, unmarked

from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.config.settings import Tokenizer
from fewstep.data.manifest import known_normalisation
from fewstep.plan.costs_spec import shard_bytes
from fewstep.plan.marks import hyperparameter_sources


def over(**files):
    return make_plan(merge(raw_config(), {"overrides": files}))


def test_the_published_network_is_the_teacher(paper_plan):
    run = paper_plan.run("teacher-sit")
    assert run.adopted and not run.published.reverse
    assert (run.backbone.norm, run.backbone.mlp, run.backbone.rope) == ("layer", "gelu", False)
    assert run.tokenizer == paper_plan.parts.tokenizers["sd-vae-ft-ema"]
    assert (run.tokenizer.multiplier, run.tokenizer.statistics) == (0.18215, "none")
    student = paper_plan.parts.backbones[run.recipe.backbone]
    assert student == run.backbone.model_copy(update={"target_time": True})


def test_every_number_of_the_setting_has_a_mark(paper_plan):
    run = paper_plan.run("teacher-sit")
    assert all(key.startswith("loss.") for key in unmarked(run))  # its training is its authors'
    marks = {entry.key: entry.mark for entry in hyperparameter_sources(run)}
    assert marks["train.steps"] == "inferred" and marks["train.global_batch_size"] == "code"


def test_imm_has_latents_of_its_own(paper_plan):
    """One deviation for each channel of the raw latents, as its release has them."""
    run = paper_plan.run("imm")
    found = known_normalisation(run.tokenizer, None)
    assert found.mean == pytest.approx([0.865, -0.278, 0.216, 0.374], abs=1e-3)
    assert found.std == pytest.approx([4.855, 5.319, 3.937, 3.987], abs=1e-3)
    assert found.multiplier == 1
    scaled = found.normalise(torch.tensor(found.mean).add(torch.tensor(found.std)).reshape(4, 1, 1))
    torch.testing.assert_close(scaled, torch.ones(4, 1, 1))


def test_meanflow_from_data_decodes_as_released(paper_plan):
    assert paper_plan.run("meanflow-data").tokenizer == paper_plan.parts.tokenizers["sd-vae-ft-mse"]


@pytest.mark.parametrize(
    "change", [{"mean": [0.0] * 3}, {"std": None}, {"statistics": "none"}, {"mean": None, "std": None}]
)
def test_numbers_of_every_channel_are_given_or_none(paper_plan, change):
    given = paper_plan.parts.tokenizers["sd-vae-ft-ema-imm"].model_dump()
    with pytest.raises(ValueError, match="given needs mean and std of each channel"):
        Tokenizer(**(given | change))


def test_moments_of_both_views_take_as_much_as_two_draws(paper_plan):
    parts = paper_plan.parts
    moments = parts.tokenizers["sd-vae-ft-ema"]
    draw = moments.model_copy(update={"posterior": "sample"})
    latents = parts.latents["imagenet256-sdvae-ema"]
    raw = [shard_bytes(latents, tokenizer, 1000) - 1000 * 4 * 512 for tokenizer in (moments, draw)]
    assert raw == [1000 * 4 * 8192, 1000 * 2 * 8192]


def test_the_other_decoder_is_another_tokenizer():
    with pytest.raises(ConfigError, match="sit-xl2 was trained on latents of sd-vae-ft-ema"):
        over(settings={"recipes": {"imagenet256-sdvae": {"latents": "imagenet256-sdvae-mse"}}})


def test_latents_of_others_have_no_moments():
    change = {"tokenizers": {"vavae-f16d32": {"posterior": "moments"}}}
    change["latents"] = {"imagenet256-vavae": {"dataset": "imagenet256-latents"}}
    with pytest.raises(ConfigError, match="posterior: moments needs images"):
        over(settings=change)
