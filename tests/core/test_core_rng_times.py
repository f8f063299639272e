from __future__ import annotations

import pytest
import torch

from fewstep.config.objectives import TimeDistribution
from fewstep.core.rng import Streams, fold_in, fold_in_each
from fewstep.core.times import sample_times

TOTAL = 200_000


@pytest.fixture
def streams():
    return Streams(0, 0, TOTAL, slice(None))


def test_rows_of_a_split_equal_the_whole():
    def draws(rows):
        streams = Streams(seed=5, step=2, total=8, rows=rows)
        like = torch.zeros(rows.stop - rows.start, 2, 3)
        return (
            streams.uniform("a"),
            streams.normal("a"),
            streams.integers("a", 9),
            streams.normal_like("a", like),
            sample_times(TimeDistribution(law="arctan", mean=0.0, std=1.0), streams, "t"),
        )

    whole, one, two = draws(slice(0, 8)), draws(slice(0, 4)), draws(slice(4, 8))
    for full, *parts in zip(whole, one, two, strict=True):
        assert torch.equal(full, torch.cat(parts))


def test_streams_depend_on_name_step_and_seed_alone():
    def draw(seed, step, name):
        return Streams(seed, step, 8, slice(None)).uniform(name)

    assert torch.equal(draw(0, 1, "t"), draw(0, 1, "t"))
    others = [draw(1, 1, "t"), draw(0, 2, "t"), draw(0, 1, "s")]
    assert not any(torch.equal(draw(0, 1, "t"), other) for other in others)
    assert fold_in(0, "a", 1) != fold_in(0, "a1")


def test_seeds_of_many_positions_are_those_of_each():
    positions = [0, 9, 10, 1_281_167, 2**40]
    assert list(fold_in_each(3, "noise", positions)) == [fold_in(3, "noise", p) for p in positions]


def test_streams_leave_the_global_generator_alone(streams):
    before = torch.get_rng_state()
    streams.normal("x")
    assert torch.equal(before, torch.get_rng_state())


def quantiles(t):
    return torch.quantile(t[:100_000], torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()


def test_arctan_law(streams):
    t = sample_times(TimeDistribution(law="arctan", mean=-0.8, std=1.6), streams, "t")
    assert t.dtype == torch.float32 and t.shape == (TOTAL,)
    assert float(t.mean()) == pytest.approx(0.645, abs=0.002)
    assert quantiles(t) == pytest.approx([0.10, 0.41, 0.73, 0.90, 0.98], abs=0.007)


def test_logit_normal_law(streams):
    t = sample_times(TimeDistribution(law="logit-normal", mean=0.8, std=1.6), streams, "t")
    normal = torch.tensor([-1.6449, -0.6745, 0, 0.6745, 1.6449])
    assert quantiles(t) == pytest.approx(torch.sigmoid(0.8 + 1.6 * normal).tolist(), abs=0.005)


def test_segments_law(streams):
    t = sample_times(TimeDistribution(law="segments", segments=4), streams, "t")
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [0, 0.25, 0.5, 0.75]
    assert (counts / TOTAL).tolist() == pytest.approx([0.25] * 4, abs=0.005)


def test_uniform_law(streams):
    t = sample_times(TimeDistribution(), streams, "t")
    assert quantiles(t) == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=0.005)


@pytest.mark.parametrize(
    ("a", "b", "cdf"),
    [
        (2.0, 2.0, lambda x: 3 * x**2 - 2 * x**3),
        (3.0, 2.0, lambda x: 4 * x**3 - 3 * x**4),
        (0.5, 0.5, lambda x: 2 / torch.pi * torch.asin(x.sqrt())),
        (1.0, 0.8, lambda x: 1 - (1 - x) ** 0.8),
        (0.8, 1.0, lambda x: x**0.8),
    ],
)
def test_beta_is_the_quantile_of_one_uniform_draw(a, b, cdf):
    streams = Streams(0, 0, 1000, slice(None))
    t = sample_times(TimeDistribution(law="beta", alpha=a, beta=b), streams, "t")
    assert t.dtype == torch.float32
    torch.testing.assert_close(cdf(t.double()), streams.uniform("t").double(), rtol=0, atol=1e-5)


def test_beta_has_its_mean_and_variance_and_does_not_depend_on_how_rows_are_cut():
    """a / (a + b), a b / ((a + b)^2 (a + b + 1))."""
    law = TimeDistribution(law="beta", alpha=2.4, beta=0.8)
    t = sample_times(law, Streams(0, 0, 20_000, slice(None)), "t")
    assert float(t.min()) >= 0 and float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.75, abs=0.006)
    assert float(t.var()) == pytest.approx(2.4 * 0.8 / (3.2**2 * 4.2), rel=0.03)
    part = sample_times(law, Streams(0, 0, 20_000, slice(70, 90)), "t")
    assert torch.equal(part, t[70:90])


@pytest.mark.parametrize("given", [{"law": "beta"}, {"law": "beta", "alpha": 1.0}, {"alpha": 1.0}])
def test_parameters_of_beta_belong_to_it(given):
    with pytest.raises(ValueError, match="alpha and beta belong to"):
        TimeDistribution(**given)


def test_a_share_that_has_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"batch of 3 rows has no row for a share of 0\.25"):
        Streams(0, 0, 3, slice(None)).spread(0.25)
    assert Streams(0, 0, 16, slice(0, 2)).spread(0.25).inside.tolist() == []
    with pytest.raises(ValueError, match=r"--shard fsdp2: 2 rows at once .* larger --device-batch"):
        Streams(0, 0, 16, slice(0, 2), sharded=True).spread(0.25)
    assert Streams(0, 0, 16, slice(0, 4), sharded=True).spread(0.25).inside.tolist() == [3]
