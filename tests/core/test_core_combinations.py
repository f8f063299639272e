"""Every formulation of the tangent in every layout: refused, or the gradient of one plain process."""

from __future__ import annotations

import itertools

import pytest
import torch
from child_processes import in_two_processes
from test_core_fused import ROWS, distance, gradients, in_one_process, loss, student
from torch.nn.parallel import DistributedDataParallel

from fewstep.backbones import build
from fewstep.config.backbones import Mlp, UNet
from fewstep.core.jvp import FORMULATIONS, value_and_tangent
from fewstep.training.parallel import (
    LAYOUTS,
    apply_compile_and_checkpointing,
    check_supported,
    full_tensor,
    shard,
)

LOSS = ("decm", 1)
"""Noise to noisy and the anchor: a tangent, a forward without a graph and one with, in one update."""

PLAIN, COMPILED, CHECKPOINTED, BOTH = "plain", "compiled", "checkpointed", "both"
EXTRAS = {PLAIN: (False, False), CHECKPOINTED: (True, False), COMPILED: (False, True), BOTH: (True, True)}
ALL = set(EXTRAS)
TABLE = {
    ("fused", "none"): ALL,
    ("fused", "ddp"): ALL,
    ("fused", "fsdp2"): ALL,
    ("split", "none"): {PLAIN, CHECKPOINTED},
    ("split", "ddp"): {PLAIN, CHECKPOINTED},
    ("split", "fsdp2"): set(),
    ("functorch", "none"): {PLAIN},
    ("functorch", "ddp"): set(),
    ("functorch", "fsdp2"): set(),
    ("central", "none"): ALL,
    ("central", "ddp"): ALL,
    ("central", "fsdp2"): ALL,
}
"""What works."""


def test_the_table_is_complete():
    assert set(TABLE) == set(itertools.product(FORMULATIONS, LAYOUTS))


@pytest.mark.parametrize(("formulation", "layout"), TABLE)
def test_all_else_is_refused(formulation, layout):
    for name, extras in EXTRAS.items():
        if name in TABLE[formulation, layout]:
            check_supported(formulation, layout, *extras)
        else:
            with pytest.raises(ValueError, match=rf"--tangent {formulation}, layout {layout}.*: \w+"):
                check_supported(formulation, layout, *extras)


@pytest.mark.parametrize("given", [("forward", "none"), ("fused", "fsdp")])
def test_unknown_words_are_refused(given):
    with pytest.raises(ValueError, match=r"unknown (formulation|layout); known: "):
        check_supported(*given, False, False)


def test_loss_scaling_of_sharded_gradients_is_refused():
    check_supported("fused", "ddp", False, False, "fp16")
    check_supported("fused", "fsdp2", False, False, "bf16")
    with pytest.raises(ValueError, match="use bf16"):
        check_supported("fused", "fsdp2", False, False, "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_differences_in_half_precision_are_refused(precision):
    check_supported("fused", "none", False, False, precision)
    with pytest.raises(ValueError, match="drowns in rounding"):
        check_supported("central", "none", False, False, precision)


def arranged(formulation: str, layout: str, checkpoint: bool, compiled: bool) -> torch.nn.Module:
    net = student()
    # What AOT capture changes is tested on one process; here it would take most of the time.
    apply_compile_and_checkpointing(net, checkpoint, "eager" if compiled else "")
    if layout == "ddp":
        return DistributedDataParallel(net, broadcast_buffers=False)
    return shard(net, torch.device("cpu"), 2) if layout == "fsdp2" else net


def _share(rank, folder):
    # Traces belong to a line of code, which all the networks here share.
    torch._dynamo.config.recompile_limit = 100
    half, found = ROWS // 2, {}
    for (formulation, layout), works in TABLE.items():
        rows = slice(0, ROWS) if layout == "none" else slice(rank * half, (rank + 1) * half)
        for name in sorted(works):
            net = arranged(formulation, layout, *EXTRAS[name])
            loss(*LOSS, net, rows, formulation).backward()
            found[f"{formulation} {layout} {name}"] = [full_tensor(grad) for grad in gradients(net)]
    torch.save(found, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Half a batch on each; the same on both."""
    in_two_processes(_share, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == sum(map(len, TABLE.values())) == 29
    expected = {name: in_one_process(*LOSS, slice(0, ROWS), name) for name in ("functorch", "central")}
    # A difference is not quite the derivative.
    assert 1e-9 < distance(expected["central"], expected["functorch"]) < 1e-2
    for name, gradient in first.items():
        reference = expected["central" if name.startswith("central") else "functorch"]
        assert distance(gradient, reference) < 1e-9, name
        assert all(map(torch.equal, gradient, second[name])), name
    assert distance(in_one_process(*LOSS, slice(0, ROWS // 2)), expected["functorch"]) > 1e-2


def test_checkpointed_and_compiled_in_one_process():
    """With whole-graph capture ahead of time, recomputed in the backward."""
    torch.compiler.reset()
    net = student()
    names = list(net.state_dict())
    apply_compile_and_checkpointing(net, checkpoint=True, compile="aot_eager")
    assert list(net.state_dict()) == names
    loss("facm", 0, net, slice(0, ROWS)).backward()
    assert distance(gradients(net), in_one_process("facm", 0, slice(0, ROWS))) < 1e-10


NETWORKS = {
    "unet": UNet(
        kind="unet", shape=[4, 8, 8], classes=3, width=32, multipliers=[1, 1], depth=1, attention=[8]
    ),
    "mlp": Mlp(kind="mlp", shape=[2, 1, 1], classes=3, width=16, depth=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_other_networks_are_compiled_and_checkpointed_too(name):
    """Value and tangent, and a plain forward, through blocks of another kind than a transformer's."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    found = []
    for checkpoint, compiler in ((False, ""), (True, "eager")):
        torch.manual_seed(0)
        net = build(NETWORKS[name]).double()
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        apply_compile_and_checkpointing(net, checkpoint, compiler)
        x, t = torch.randn(2, *NETWORKS[name].shape, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
        labels = torch.tensor([0, 2])
        value, tangent = value_and_tangent(net, (x, t, 0 * t + 1), (x, 1 - t, 0 * t), labels)
        ((value - tangent).square().mean() + net(x, t, t, labels).square().mean()).backward()
        found.append([tangent, *(weight.grad for weight in net.parameters())])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2 * len(net.blocks)
    for plain, arranged in zip(*found, strict=True):
        torch.testing.assert_close(arranged, plain, rtol=1e-9, atol=1e-12)
