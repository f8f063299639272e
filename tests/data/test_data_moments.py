"""Latents stored as mean and deviation of the posterior, and drawn anew in every batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_factories import LatentSet, pixel_latents

from fewstep.config.settings import Tokenizer, Weights
from fewstep.data import tokenizers
from fewstep.data.encoding import ChannelStatistics
from fewstep.data.encoding import open_tokenizer as opened_by_encode
from fewstep.data.loader import Loader, positions
from fewstep.data.shards import LatentShards
from fewstep.plan.costs_spec import shard_bytes


class Posterior:
    """Stands for an autoencoder: mean x, deviation 0.1 + x^2 / 10."""

    def encode(self, images, indices, view=0):
        return torch.cat([images, 0.1 + images.square() / 10], dim=1)

    def decode(self, latents):
        assert latents.shape[1] == 1
        return latents.clamp(-1, 1)


@pytest.fixture(scope="module")
def made(digits_record: Path, tmp_path_factory: pytest.TempPathFactory) -> LatentSet:
    made = pixel_latents(tmp_path_factory.mktemp("moments"), digits_record)
    tokenizer = Tokenizer(
        kind="sd-vae",
        shape=[1, 8, 8],
        weights=Weights(asset="vae", file="vae.safetensors"),
        posterior="moments",
        statistics="computed",
        multiplier=0.5,
    )
    made.spec = made.spec.model_copy(update={"tokenizer": tokenizer})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.data.encoding.open_tokenizer", lambda *_: Posterior())
        made.encode()
    return made


def test_they_are_for_autoencoders_with_a_posterior() -> None:
    with pytest.raises(ValueError, match="posterior: moments is for kinds vavae and sd-vae"):
        Tokenizer(kind="pixels", shape=[1, 8, 8], posterior="moments")
    assert opened_by_encode is tokenizers.open_tokenizer  # what the fixture takes the place of


def test_shards_hold_both_and_networks_see_one(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    assert shards.shape == (1, 8, 8) and shards.read([3, 4]).shape == (2, 2, 1, 8, 8)
    mean = shards.read([5], [0])
    noise = torch.randn(1, 1, 8, 8)
    expected = mean + (0.1 + mean.square() / 10) * noise
    torch.testing.assert_close(shards.read([5], [0], noise), expected)
    plain = sum(path.stat().st_size for path in made.shards)
    assert plain == pytest.approx(shard_bytes(made.spec.latents, made.spec.tokenizer, 1797), rel=0.02)


def test_the_variance_of_draws_is_normalised(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    mean = shards.read(range(1797)).double().numpy()
    deviation = 0.1 + mean**2 / 10
    variance = mean.var() + (deviation**2).mean()
    assert shards.manifest.std == pytest.approx([variance**0.5], rel=1e-5)
    drawn = torch.cat([Loader(shards, 0, 600).rows(step, slice(None)).x1 for step in range(3)])
    assert drawn.std().item() == pytest.approx(0.5, rel=0.01)


def test_every_visit_draws_anew_and_every_run_the_same(made: LatentSet) -> None:
    shards = LatentShards(made.manifest)
    loader, again = Loader(shards, 0, 1797), Loader(shards, 0, 1797)
    first, second = (loader.rows(step, slice(None)) for step in range(2))
    assert torch.equal(again.rows(1, slice(None)).x1, second.x1)
    assert torch.equal(again.rows(1, slice(7, 19)).x1, second.x1[7:19])
    latents = torch.empty(2, *first.x1.shape)
    for latent, step, batch in zip(latents, range(2), (first, second)):
        latent[loader._samples(positions(step, 1797))] = batch.x1
    assert (latents[0] != latents[1]).flatten(1).any(1).all()
    drawn = latents[0] - latents[1]  # means cancel
    path = torch.empty_like(first.x0)
    path[loader._samples(positions(0, 1797))] = first.x0
    correlation = torch.corrcoef(torch.stack([drawn.flatten(), path.flatten()]))[0, 1]
    assert correlation.abs() < 0.02  # the draw is not the noise of the path


def test_moments_of_mixtures_add_up() -> None:
    draws = np.random.default_rng(0)
    mean, deviation = draws.normal(size=(2, 6, 2, 3, 4, 4))
    whole, parts = ChannelStatistics(3), ChannelStatistics(3)
    whole.add(mean, deviation)
    for start in (0, 2):
        parts.add(mean[start : start + 2 + start], deviation[start : start + 2 + start])
    variance = mean.var((0, 1, 3, 4)) + (deviation**2).mean((0, 1, 3, 4))
    for moments in (whole, parts):
        np.testing.assert_allclose(moments.result()[1], np.sqrt(variance))
