"""Counted operations: those of the passes that were made, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones import build
from fewstep.config.backbones import LightningDiT
from fewstep.core import operations
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context, LossOutput, Method
from fewstep.core.operations import OperationCounter, per_step
from fewstep.core.rng import Streams
from fewstep.training.parallel import apply_compile_and_checkpointing

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
                Context(torch.tensor(float(step)), 9, Streams(0, step, 8, slice(a, b)), 3, value_and_tangent),
            )
            for a, b in cuts
        ]

    return of


def counted(call) -> int:
    with OperationCounter() as counter:
        call()
    return counter.total


def test_averages_over_steps(net):
    (batch, ctx), *_ = slices()(0)
    inputs = batch.x1, ctx.rng.uniform("t"), ctx.rng.uniform("s"), batch.y
    with torch.no_grad():
        forward = counted(lambda: net(*inputs))
    both = counted(lambda: net(*inputs).square().mean().backward())
    net.zero_grad()
    found = per_step(Counted(None), net, slices(), 9, net.zero_grad)
    assert found == pytest.approx(both + forward / 3) and forward > 0
    assert 2 < both / forward <= 3


B, M, K, N = 3, 5, 7, 11
a, b, batched = torch.ones(M, K), torch.ones(K, N), (torch.ones(B, M, K), torch.ones(B, K, N))
PRODUCTS = {
    "mm": (lambda: a @ b, 2 * M * K * N),
    "addmm": (lambda: torch.addmm(torch.ones(N), a, b), 2 * M * K * N),
    "linear": (lambda: F.linear(a, b.T, torch.ones(N)), 2 * M * K * N),
    "bmm": (lambda: torch.bmm(*batched), 2 * B * M * K * N),
    "baddbmm": (lambda: torch.baddbmm(torch.ones(B, M, N), *batched), 2 * B * M * K * N),
    "addbmm": (lambda: torch.addbmm(torch.ones(M, N), *batched), 2 * B * M * K * N),
    "einsum": (lambda: torch.einsum("bmk,bkn->bmn", *batched), 2 * B * M * K * N),
    "mv": (lambda: a @ torch.ones(K), 2 * M * K),
    "addmv": (lambda: torch.addmv(torch.ones(M), a, torch.ones(K)), 2 * M * K),
    "dot": (lambda: torch.ones(K) @ torch.ones(K), 2 * K),
    "convolution": (lambda: F.conv2d(torch.ones(B, 4, 6, 6), torch.ones(8, 4, 3, 3)), 2 * B * 8 * 4 * 9 * 16),
    "element-wise": (lambda: torch.ones(9, 9) * 3 + torch.ones(9), 0),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_on_every_release_of_torch(product, mode):
    call, expected = PRODUCTS[product]
    with mode():
        assert counted(call) == expected


@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION"])
def test_attention_on_every_release_of_torch(backend):
    """Two products forward, four backward, and the scores anew where they were not kept."""
    query, key, value = (torch.randn(2, 3, n, c, requires_grad=True) for n, c in ((5, 8), (7, 8), (7, 8)))
    product = 2 * 2 * 3 * 5 * 7 * 8
    with sdpa_kernel(getattr(SDPBackend, backend)):
        with torch.no_grad():
            assert counted(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * product
        again = backend == "FLASH_ATTENTION"
        total = counted(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
        assert total == (6 + again) * product


def test_attention_without_a_rule_is_an_error(monkeypatch):
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    monkeypatch.delitem(operations._RULES, kernel)
    heads = torch.ones(1, 1, 4, 8)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(NotImplementedError, match="flash_attention"):
        counted(lambda: F.scaled_dot_product_attention(heads, heads, heads))


def test_a_batch_cut_in_parts_costs_the_same(net):
    whole = per_step(Counted(None), net, slices(), 9, net.zero_grad)
    assert per_step(Counted(None), net, slices(((0, 2), (2, 8))), 9, net.zero_grad) == whole


def test_nothing_is_left_behind(net):
    weights = [w.clone() for w in net.state_dict().values()]
    generator = torch.get_rng_state()
    per_step(Counted(None), net, slices(), 9, lambda: net.zero_grad(set_to_none=True))
    assert all(weight.grad is None for weight in net.parameters())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, net.state_dict().values(), strict=True))


def test_compiled_blocks_count_as_uncompiled_ones(net):
    plain = per_step(Counted(None), net, slices(), 9, net.zero_grad)
    for block in net.blocks:
        block.compile(backend="eager")
    assert per_step(Counted(None), net, slices(), 9, net.zero_grad) == plain


def test_recomputed_blocks_count_once(net):
    plain = per_step(Counted(None), net, slices(), 9, net.zero_grad)
    apply_compile_and_checkpointing(net, checkpoint=True)
    assert per_step(Counted(None), net, slices(), 9, net.zero_grad) == plain
    assert not OperationCounter.recomputing
