"""Decomposable flow matching: the pyramid, the objective, the network, the sampler."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from configs import make_plan, raw_config
from torch import nn

from fewstep.backbones import build
from fewstep.config.backbones import LightningDiT
from fewstep.config.settings import PyramidSampling, Sampler
from fewstep.core.guidance import guided_field
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.pyramid import compose, decompose, pack, sides, unpack
from fewstep.core.rng import Streams
from fewstep.evaluation.samplers import check_network, integrate, pyramid_grid
from fewstep.methods.dfm.loss import DFM
from fewstep.methods.dfm.params import DFMParams

SPEC = LightningDiT(
    shape=[2, 8, 8], classes=3, depth=1, width=16, heads=2, patch=2, target_time=False, scales=2
)
PYRAMID = Sampler(kind="pyramid", pyramid=PyramidSampling(steps=[40, 10]))


@pytest.fixture
def images():
    return torch.randn(5, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_the_parts_of_a_pyramid_are_the_image(images, scales):
    parts = decompose(images, scales)
    shapes = sides(8, 8, scales)
    assert [tuple(part.shape[2:]) for part in parts] == shapes
    torch.testing.assert_close(compose(parts), images, rtol=0, atol=1e-14)
    for part, again in zip(parts, unpack(pack(parts), shapes), strict=True):
        assert torch.equal(part, again)


def by_hand(images):
    """Both scales, from loops: means of 2 x 2; weights 3/4 and 1/4 of the nearest two, held at the edges."""
    x = images.numpy()
    coarse = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    fine = x.copy()
    side = coarse.shape[-1]
    for i in range(2 * side):
        for j in range(2 * side):
            near = [(k // 2, min(max(k // 2 + (1 if k % 2 else -1), 0), side - 1)) for k in (i, j)]
            for a, p in zip((0.75, 0.25), near[0], strict=True):
                for b, q in zip((0.75, 0.25), near[1], strict=True):
                    fine[..., i, j] -= a * b * coarse[..., p, q]
    return coarse, fine


def test_the_pyramid_is_the_papers(images):
    for ours, theirs in zip(decompose(images, 2), by_hand(images), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-14)


def context(rows: int) -> Context:
    return Context(
        step=torch.zeros((), dtype=torch.float64),
        steps=10,
        rng=Streams(3, 0, rows, slice(None)),
        null=3,
        jvp=value_and_tangent,
    )


class Linear(nn.Module):
    """One weight for each number of the pyramid, and one for each time."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 2 * 80, dtype=torch.float64).reshape(2, 80))
        self.time = nn.Parameter(torch.tensor([0.3, -0.7], dtype=torch.float64))

    def forward(self, x, t, s, y):
        assert x.shape[1:] == (2, 80) and t.shape[1:] == (2,)
        return self.weight * x + (t @ self.time)[:, None, None]


def test_the_objective_from_the_papers_equations():
    """In float64 by NumPy, with its gradient."""
    rows = 40
    draws = torch.Generator().manual_seed(1)
    x1, x0 = torch.randn(2, rows, 2, 8, 8, dtype=torch.float64, generator=draws)
    net, ctx = Linear(), context(rows)
    method = DFM(DFMParams())
    terms = method.loss(net, Batch(x1, x0, torch.zeros(rows, dtype=torch.int64)), ctx)
    gradient = torch.autograd.grad(terms.loss, list(net.parameters()))

    chance = ctx.rng.strata("stage").numpy()
    both = chance >= 0.9
    assert both.sum() == 4  # a tenth of the batch, exactly

    def logistic(n):
        return 1 / (1 + np.exp(-n.numpy().astype(np.float32)))

    t_last, t_first = logistic(ctx.rng.normal("t")), logistic(ctx.rng.normal("t of scale 0") + 1.5)
    t = method.times(ctx)[0].double().numpy()  # its bits are float32's
    wanted = np.stack([np.where(both, t_first, t_last), np.where(both, t_last, 0)], 1)
    np.testing.assert_allclose(t, wanted, rtol=0, atol=3e-7)
    data = by_hand(x1)
    noise = (ctx.rng.normal_like("noise of scale 0", torch.empty(rows, 2, 4, 4)).double().numpy(), x0.numpy())
    weight, time = net.weight.detach().numpy(), net.time.detach().numpy()
    loss, by_weight, by_time = 0.0, np.zeros_like(weight), np.zeros_like(time)
    for scale, (first, last) in enumerate(((0, 16), (16, 80))):
        x, z = (each[scale].reshape(rows, 2, -1) for each in (data, noise))
        for row in range(rows):
            if scale == 1 and not both[row]:
                continue
            point = t[row, scale] * x[row] + (1 - t[row, scale]) * z[row]
            error = weight[:, first:last] * point + t[row] @ time - (x[row] - z[row])
            loss += (error**2).mean() / rows
            by_weight[:, first:last] += 2 * error * point / error.size / rows
            by_time += 2 * error.mean() * t[row] / rows
    assert terms.loss.item() == pytest.approx(loss, rel=1e-12)
    assert np.abs(gradient[0].numpy() - by_weight).max() < 1e-10
    assert np.abs(gradient[1].numpy() - by_time).max() < 1e-10


def test_scales_that_wait_are_hidden_and_do_not_count():
    seen = []

    class Spy(nn.Module):
        def forward(self, x, t, s, y):
            seen.append((x, t))
            return torch.zeros_like(x)

    rows = 20
    x1, x0 = torch.randn(2, rows, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    DFM(DFMParams()).loss(Spy(), Batch(x1, x0, torch.zeros(rows, dtype=torch.int64)), context(rows))
    ((x, t),) = seen
    waits = t[:, 1] == 0
    assert int(waits.sum()) == 18
    assert not x[waits][:, :, 16:].any() and bool(x[~waits][:, :, 16:].all()) and bool(x[:, :, :16].all())


def test_the_network_knows_each_scale_and_its_time(images):
    torch.manual_seed(0)
    net = build(SPEC)
    x = pack(decompose(images.float(), 2))
    t = torch.tensor([[0.7, 0.2]]).expand(5, 2)
    y = torch.arange(5) % 4
    assert not net(x, t, None, y).any()  # starts as zero
    for weight in net.parameters():
        if weight.requires_grad:
            nn.init.normal_(weight, std=0.2)
    out = net(x, t, None, y)
    assert out.shape == x.shape and out.dtype == x.dtype
    for changed in (t.roll(1, 1), t + torch.tensor([0.1, 0]), t + torch.tensor([0, 0.1])):
        assert (net(x, changed, None, y) - out).abs().max() > 1e-3
    # A pixel of the coarse scale enters by the patches of 1, of the fine one by those of 2: 16 tokens each.
    assert net.coarse[0].x_embedder.proj.weight.shape[2:] == (1, 1)
    assert net.x_embedder.proj.weight.shape[2:] == (2, 2)
    out.square().mean().backward()
    assert all(
        weight.grad is not None and weight.grad.any() for weight in net.parameters() if weight.requires_grad
    )


def test_the_times_of_the_sampler_are_the_releases():
    """40 steps of the first scale to 0.9, then both together."""
    grid = pyramid_grid(PYRAMID.pyramid)
    assert len(grid) == 51
    assert grid[0] == (0, 0) and grid[40] == (0.9, 0) and grid[-1] == (1, 1)
    np.testing.assert_allclose([row[0] for row in grid[:41]], np.linspace(0, 0.9, 41), atol=1e-15)
    np.testing.assert_allclose([row[1] for row in grid[40:]], np.linspace(0, 1, 11), atol=1e-15)
    np.testing.assert_allclose([row[0] for row in grid[40:]], np.linspace(0.9, 1, 11), atol=1e-15)
    three = pyramid_grid(PyramidSampling(steps=[2, 2, 1], threshold=0.8))
    assert three[2] == (0.8, 0, 0) and three[4] == (1, 0.8, 0) and three[-1] == (1, 1, 1)
    assert all(a <= b for now, after in pairwise(three) for a, b in zip(now, after, strict=True))


def test_the_sampler_with_a_velocity_in_closed_form(images):
    """Towards one image, v = (x1 - x) / (1 - t) of each scale: Euler steps of any number are exact."""
    target = decompose(images, 2)
    shapes, seen = sides(8, 8, 2), []

    def field(x, t, s):
        assert t == s
        parts = unpack(x.double(), shapes)
        seen.append([bool(part.any()) for part in parts])
        return pack([(x1 - part) / (1 - each) for x1, part, each in zip(target, parts, t, strict=True)])

    noise = torch.Generator().manual_seed(4)
    x0 = torch.randn(images.shape, dtype=torch.float64, generator=noise)
    asked = []

    def more(purpose):
        asked.append(purpose)
        return torch.randn(images.shape, generator=torch.Generator().manual_seed(purpose))

    found = integrate(PYRAMID, field, x0, 50, more)
    torch.testing.assert_close(found, images, rtol=0, atol=1e-5)
    assert asked == [0] and seen == [[True, False]] * 40 + [[True, True]] * 10
    with pytest.raises(ValueError, match=r"steps is 4: the sampler's pyramid.steps are \[40, 10\]"):
        integrate(PYRAMID, field, x0, 4, more)


def sampled_covariance(data, steps):
    """Covariance of 4 x 4 pixels that the sampler makes with the exact velocity of data N(0, ``data``).

    All is linear in the noise, 4 + 16 numbers: the rows of the batch are its unit vectors.
    """
    unit = torch.eye(16, dtype=torch.float64)
    parts = pack(decompose(unit.reshape(16, 1, 4, 4), 2))[:, 0]  # of each pixel
    clean = parts.T @ data @ parts  # covariance of the pyramid of the data
    noise = torch.eye(20, dtype=torch.float64)
    corner = torch.zeros(20, 1, 4, 4, dtype=torch.float64)
    corner[:, 0, :2, :2] = noise[:, :4].reshape(20, 2, 2)

    def field(x, t, s):
        """E[x1 - x0 | what is shown], of jointly normal x_t = t x1 + (1 - t) x0."""
        x = x[:, 0].double()
        shown = x.any(0) if not t[1] else torch.ones(20, dtype=torch.bool)
        time = torch.tensor([t[0]] * 4 + [t[1]] * 16, dtype=torch.float64)
        mixed = time[:, None] * clean * time + torch.diag((1 - time) ** 2)
        both = clean * time - torch.diag(1 - time)
        found = torch.zeros_like(x)
        found[:, shown] = (
            both[shown][:, shown] @ torch.linalg.solve(mixed[shown][:, shown], x[:, shown].T)
        ).T
        return found[:, None]

    sampler = Sampler(kind="pyramid", pyramid=PyramidSampling(steps=steps))
    x = integrate(sampler, field, noise[:, 4:].reshape(20, 1, 4, 4), sum(steps), lambda scale: corner)
    return x.reshape(20, 16).T @ x.reshape(20, 16)


def test_the_sampler_makes_the_datas_distribution():
    """Of normal data, with the exact velocity; the error is of the first order in the steps."""
    factor = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4
    data = factor @ factor.T
    coarse, fine = ((sampled_covariance(data, [4 * n, n]) - data).abs().max() for n in (50, 500))
    assert fine < 0.01 * data.abs().max() and 8 < coarse / fine < 12


def test_guidance_of_a_pyramid(images):
    from fewstep.config.settings import Guidance

    def net(x, t, s, y):
        return x * t.sum(1)[:, None, None] + y[:, None, None]

    x = pack(decompose(images.float(), 2))
    field = guided_field(net, Guidance(scale=1.5), 3, torch.ones(5, dtype=torch.int64))
    torch.testing.assert_close(field(x, (0.5, 0.25), (0.5, 0.25)), 0.75 * x + 1 + 0.5 * (1 - 3))
    with pytest.raises(ValueError, match="guides all scales at all times"):
        Sampler(**PYRAMID.model_dump() | {"guidance": {"scale": 2.0, "interval": [0.1, 1.0]}})


def test_other_samplers_and_networks_are_refused():
    plain = SPEC.model_copy(update={"scales": 1})
    for sampler, spec in ((PYRAMID, plain), (Sampler(kind="euler"), SPEC)):
        with pytest.raises(ValueError, match="is for scales: "):
            check_network(sampler, spec, "file")
    check_network(PYRAMID, SPEC, "file")
    with pytest.raises(ValueError, match="patch 2 must be halved 2 times"):
        LightningDiT(**SPEC.model_dump() | {"scales": 3})
    assert "scales" not in plain.model_dump()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"backbone": "lightningdit-digits-pixels"}, "needs a backbone with scales: 2 or more"),
        ({"loss": {"stages": [0.5, 0.25, 0.25]}}, "stages: 3 shares, but the backbone has scales: 2"),
        ({"teacher": "flow-matching-flux"}, "learns from the data alone; set teacher: false"),
        ({"samplers": {50: "euler"}}, "is for scales: 1, but backbone lightningdit-digits-pyramid has 2"),
    ],
)
def test_what_cannot_be_is_refused(method, words):
    from fewstep.config.base import merge

    raw = raw_config("demo")
    raw["overrides"] = merge(raw["overrides"], {"methods": {"dfm": method}})
    with pytest.raises(ValueError, match=words):
        make_plan(raw)


def test_the_paper_scale_is_planned(paper_plan):
    run = paper_plan.runs["dfm/base"]
    assert (run.backbone.scales, run.backbone.patch, run.train.steps) == (2, 2, 500000)
    assert paper_plan.tables["dfm-table"].extra_metrics == {"fdd": "fdd-512", "is": "common-512"}
