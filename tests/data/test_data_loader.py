"""Batches depend on seed and step alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from data_factories import LatentSet, pixel_latents

from fewstep.data.loader import Loader, positions
from fewstep.data.shards import LatentShards

ALL = slice(None)


@pytest.fixture(scope="module")
def shards(made: LatentSet) -> LatentShards:
    return LatentShards(made.manifest)


def test_positions_tile_the_sequence() -> None:
    assert torch.cat([positions(step, 5) for step in range(4)]).tolist() == list(range(20))


def test_every_image_exactly_once_per_epoch(shards: LatentShards) -> None:
    loader, size = Loader(shards, seed=3, batch=100), len(shards)
    samples = torch.cat([loader._samples(positions(step, 100)) for step in range(54)])
    first, second, third = (samples[epoch * size : (epoch + 1) * size] for epoch in range(3))
    for epoch in (first, second, third):
        assert torch.equal(epoch.sort().values, torch.arange(size))
    assert not torch.equal(first, second) and not torch.equal(first, torch.arange(size))


def test_a_batch_larger_than_the_data_set(shards: LatentShards) -> None:
    samples = Loader(shards, seed=0, batch=4000)._samples(positions(0, 4000))
    assert torch.equal(samples[:1797].sort().values, samples[1797:3594].sort().values)


def test_ranks_and_micro_batches_see_parts_of_the_same_batch(shards: LatentShards) -> None:
    whole = Loader(shards, seed=1, batch=64)
    ranks = [Loader(shards, seed=1, batch=64) for _ in range(2)]
    for step in (0, 27, 28, 29):  # 28 crosses an epoch
        expected = whole.rows(step, ALL)
        parts = [
            loader.rows(step, slice(start, start + 16))
            for rank, loader in enumerate(ranks)
            for start in (32 * rank, 32 * rank + 16)
        ]
        for name in ("x1", "x0", "y"):
            union = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(union, getattr(expected, name)), (step, name)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work_and_change_nothing(
    shards: LatentShards, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Loader(shards, seed=1, batch=50).rows(2, slice(7, 50))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    several = Loader(shards, seed=1, batch=50).rows(2, slice(7, 50))
    assert torch.equal(alone.x0, several.x0) and torch.equal(alone.x1, several.x1)


def test_normalising_leaves_its_input_alone(shards: LatentShards) -> None:
    raw = torch.rand(2, *shards.shape)
    kept = raw.clone()
    normal = shards.normalise(raw)
    torch.testing.assert_close(shards.manifest.normalisation.denormalise(normal), raw)
    assert torch.equal(raw, kept) and normal.data_ptr() != raw.data_ptr()


def test_any_step_can_be_the_first(shards: LatentShards) -> None:
    running = Loader(shards, seed=1, batch=200)
    batches = [running.rows(step, ALL) for step in range(12)]
    resumed = Loader(shards, seed=1, batch=200).rows(11, ALL)
    assert torch.equal(resumed.x1, batches[11].x1) and torch.equal(resumed.x0, batches[11].x0)
    other = Loader(shards, seed=2, batch=200).rows(11, ALL)
    assert not torch.equal(other.x0, resumed.x0) and not torch.equal(other.y, resumed.y)


def test_batches_hold_normalised_latents_with_their_labels(shards: LatentShards) -> None:
    loader = Loader(shards, seed=0, batch=64)
    batch = loader.rows(5, ALL)
    samples = loader._samples(positions(5, 64))
    both = shards.normalise(shards.read(samples))
    straight = (batch.x1 == both[:, 0]).flatten(1).all(1)
    mirrored = (batch.x1 == both[:, 1]).flatten(1).all(1)
    assert (straight | mirrored).all() and torch.equal(batch.y, shards.labels[samples])
    assert batch.x1.dtype == batch.x0.dtype == torch.float32 and batch.y.dtype == torch.int64


def test_noise_is_standard_normal_and_never_repeats(shards: LatentShards) -> None:
    loader = Loader(shards, seed=0, batch=500)
    noise = torch.cat([loader.rows(step, ALL).x0 for step in range(4)])
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    assert len(noise.flatten(1).unique(dim=0)) == 2000


def test_both_views_are_used_about_equally(shards: LatentShards) -> None:
    loader = Loader(shards, seed=0, batch=1797)
    order = loader._samples(positions(0, 1797))
    straight = shards.normalise(shards.read(order))[:, 0]
    share = (loader.rows(0, ALL).x1 == straight).flatten(1).all(1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.05)


def test_one_view_is_read_as_it_is(digits_record: Path, tmp_path: Path) -> None:
    made = pixel_latents(tmp_path, digits_record, flip=False, shards=1)
    made.encode()
    shards = LatentShards(made.manifest)
    loader = Loader(shards, seed=0, batch=10)
    expected = shards.normalise(shards.read(loader._samples(positions(3, 10)))[:, 0])
    assert torch.equal(loader.rows(3, ALL).x1, expected)
