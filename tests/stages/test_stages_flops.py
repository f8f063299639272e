"""Counted operations: those of the passes that were made, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep import flops
from fewstep.backbones import build
from fewstep.config.settings import LightningDiT
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context, LossOutput, Method
from fewstep.core.rng import Streams
from fewstep.wrap import arrange

SPEC = LightningDiT(shape=[2, 4, 4], classes=3, depth=2, width=32, heads=2, patch=2)


class Counted(Method):
    """A forward with backward in every step, and another forward without in every third."""

    def updates(self, step):
        return (self.one, self.other) if step % 3 == 0 else (self.one,)

    def one(self, net, batch, ctx):
        return LossOutput(net(batch.x1, ctx.rng.uniform("t"), ctx.rng.uniform("s"), batch.y).square().mean())

    def other(self, net, batch, ctx):
        with torch.no_grad():
            net(batch.x1, ctx.rng.uniform("t"), ctx.rng.uniform("s"), batch.y)
        return LossOutput(sum(weight.sum() for weight in net.parameters() if weight.requires_grad))


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(SPEC)
        for weight in net.parameters():
            if weight.requires_grad:
                nn.init.normal_(weight, std=0.1)
    return net


def slices(cuts=((0, 8),)):
    draws = torch.Generator().manual_seed(1)
    x1, x0 = torch.randn(2, 8, 2, 4, 4, generator=draws)

    def of(step):
        return [
            (
                Batch(x1[a:b], x0[a:b], torch.arange(a, b) % 3),
                Context(step, 9, Streams(0, step, 8, slice(a, b)), 3, value_and_tangent),
            )
            for a, b in cuts
        ]

    return of


def test_agrees_with_torch_and_averages_over_steps(net):
    (batch, ctx), *_ = slices()(0)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        net(batch.x1, ctx.rng.uniform("t"), ctx.rng.uniform("s"), batch.y)
    with FlopCounterMode(display=False) as both:
        net(batch.x1, ctx.rng.uniform("t"), ctx.rng.uniform("s"), batch.y).square().mean().backward()
    net.zero_grad()
    found = flops.per_step(Counted(None), net, slices(), 9, net.zero_grad)
    expected = both.get_total_flops() + forward.get_total_flops() / 3
    assert found == pytest.approx(expected) and forward.get_total_flops() > 0
    assert 2 < both.get_total_flops() / forward.get_total_flops() <= 3


def test_a_batch_cut_in_parts_costs_the_same(net):
    whole = flops.per_step(Counted(None), net, slices(), 9, net.zero_grad)
    assert flops.per_step(Counted(None), net, slices(((0, 2), (2, 8))), 9, net.zero_grad) == whole


def test_nothing_is_left_behind(net):
    weights = [w.clone() for w in net.state_dict().values()]
    generator = torch.get_rng_state()
    flops.per_step(Counted(None), net, slices(), 9, lambda: net.zero_grad(set_to_none=True))
    assert all(weight.grad is None for weight in net.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, net.state_dict().values(), strict=True))


def test_compiled_blocks_count_as_uncompiled_ones(net):
    plain = flops.per_step(Counted(None), net, slices(), 9, net.zero_grad)
    for block in net.blocks:
        block.compile(backend="eager")
    assert flops.per_step(Counted(None), net, slices(), 9, net.zero_grad) == plain


def test_recomputed_blocks_count_once(net):
    plain = flops.per_step(Counted(None), net, slices(), 9, net.zero_grad)
    arrange(net, checkpoint=True)
    assert flops.per_step(Counted(None), net, slices(), 9, net.zero_grad) == plain
    assert not flops.Flops.paused
