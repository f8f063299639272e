"""The fused sweep where it is used: behind wrappers, in objectives, in one and in two processes."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from child_processes import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fewstep.backbones import build
from fewstep.config.backbones import LightningDiT
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.rng import Streams
from fewstep.methods import build as build_method
from fewstep.methods import parameter_classes

SPEC = LightningDiT(shape=[4, 4, 4], classes=3, depth=2, width=24, heads=2, patch=2, qk_norm=True)
ROWS = 8
LOSSES = [("facm", 0), ("decm", 0), ("decm", 1)]
"""Method and number of the update; the second of DE-CM is noise to noisy."""


def student() -> nn.Module:
    """A small network, always the same, without the zero layers of a fresh one; float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(SPEC).double()
        for weight in net.parameters():
            if weight.requires_grad:
                weight.data.normal_(std=0.2)
    return net


def teacher(x, t, y):
    return torch.sin(x + t[:, None, None, None])


def loss(
    name: str,
    update: int,
    net: nn.Module,
    rows: slice,
    formulation: str = "fused",
    dtype: torch.dtype = torch.float64,
):
    draws = torch.Generator().manual_seed(2)
    x1, x0 = torch.randn(2, ROWS, *SPEC.shape, generator=draws, dtype=dtype)[:, rows]
    batch = Batch(x1=x1, x0=x0, y=torch.arange(ROWS)[rows] % 3)
    context = Context(
        step=0,
        steps=10,
        rng=Streams(3, 0, ROWS, rows),
        null=3,
        jvp=lambda *given: value_and_tangent(*given, formulation),
        teacher=teacher,
    )
    params = parameter_classes()[name](name=name)
    return build_method(params).updates(0)[update](net, batch, context).loss


def gradients(net: nn.Module) -> list[torch.Tensor]:
    found = [weight.grad for weight in net.parameters() if weight.requires_grad]
    net.zero_grad()
    return found


def in_one_process(name: str, update: int, rows: slice = slice(0, ROWS), formulation: str = "fused"):
    net = student()
    loss(name, update, net, rows, formulation).backward()
    return gradients(net)


def distance(ours, theirs) -> float:
    """Largest difference, relative to the largest entry of each tensor."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("formulation", ["functorch", "split"])
@pytest.mark.parametrize(("name", "update"), LOSSES)
def test_objectives_have_the_gradient_of_the_reference(name, update, formulation):
    expected = in_one_process(name, update, formulation=formulation)
    assert distance(in_one_process(name, update), expected) < 1e-12


def test_the_wrapper_is_called():
    """And only it: what it does to the forward reaches value and tangent."""

    class Compiled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner
            self.calls = 0

        def forward(self, *inputs, **given):
            self.calls += 1
            return self._orig_mod(*inputs, **given)

    wrapped = Compiled(student())
    loss("facm", 0, wrapped, slice(0, ROWS))
    assert wrapped.calls == 2


def test_under_accelerate_in_mixed_precision():
    """Prepared for bf16, the network's forward casts, and returns value and tangent in float32."""
    net = student().float()
    x, t = torch.randn(4, *SPEC.shape), torch.rand(4)
    given = (x, t, t), (torch.randn_like(x), t, t), torch.arange(4) % 3
    exact = value_and_tangent(net, *given)
    prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(net)
    rough = value_and_tangent(prepared, *given)
    for a, b in zip(rough, exact):
        assert a.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.1 * b.norm()
    assert torch.equal(rough[0], prepared(*given[0], given[2]))


def test_compiled_block_by_block():
    """Whole-graph capture of a block that carries a tangent; the backend changes nothing."""
    compiled = student()
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    loss("facm", 0, compiled, slice(0, ROWS)).backward()
    assert distance(gradients(compiled), in_one_process("facm", 0)) < 1e-10


def _share(rank, folder):
    half = ROWS // 2
    for static in (False, True):
        for name, update in LOSSES:
            net = DistributedDataParallel(student(), static_graph=static)
            loss(name, update, net, slice(rank * half, (rank + 1) * half)).backward()
            if rank == 0:
                torch.save(gradients(net), folder / f"{name}-{update}-{static}.pt")
    net, quarter = DistributedDataParallel(student()), ROWS // 4
    for part in range(2):
        first = rank * half + part * quarter
        with net.no_sync() if part == 0 else nullcontext():
            (loss("decm", 0, net, slice(first, first + quarter)) / 2).backward()
    if rank == 0:
        torch.save(gradients(net), folder / "accumulated.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Half a batch on each, cut once more by accumulation or not."""
    in_two_processes(_share, tmp_path)
    for name, update in LOSSES:
        expected = in_one_process(name, update)
        for static in (False, True):
            shared = torch.load(tmp_path / f"{name}-{update}-{static}.pt", weights_only=True)
            assert distance(shared, expected) < 1e-9, (name, update, static)
        assert distance(in_one_process(name, update, slice(0, ROWS // 2)), expected) > 1e-2
    accumulated = torch.load(tmp_path / "accumulated.pt", weights_only=True)
    assert distance(accumulated, in_one_process("decm", 0)) < 1e-9
