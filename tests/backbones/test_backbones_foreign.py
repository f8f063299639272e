"""Networks of diffusers, which know nothing of duals: value, tangent and gradient are those of functorch."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from child_processes import in_two_processes
from tangents import evaluate, relative, saved_sizes
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from diffusers_networks import NETWORKS as OTHERS
from diffusers_networks import sd3_network
from tiny_sd3 import ADAPTERS, inputs

from fewstep.backbones.lora import AdaptersOff
from fewstep.core.dual import Dual
from fewstep.training import parallel

SD3 = {
    "sd3.5": {},
    "sd3.5 with adapters": {"lora": ADAPTERS},
    "sd3": {"dual_attention": 0, "qk_norm": False},
    "one time": {"target_time": False},
    "sd3's own time": {"time_scale": 1000.0, "lora": ADAPTERS},
}
NETWORKS = {name: partial(sd3_network, **changes) for name, changes in SD3.items()} | OTHERS
PLAIN = ["flux", "sana", "qwen-image"]
ADAPTED = [f"{name} with adapters" for name in ("sd3.5", *PLAIN)]


def assert_near(found, expected, limit: float) -> None:
    """Value, tangent and gradients, each relative to its norm."""
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ([z] if torch.is_tensor(z) else z for z in (ours, theirs))
        assert relative(ours, theirs) <= limit


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("name", NETWORKS)
def test_tangents_are_functorchs(name, dtype, limit, monkeypatch):
    net = NETWORKS[name](dtype=dtype)
    if dtype == torch.float64:  # SANA's attention would round to float32 on its way
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    if name == "sd3's own time" and dtype == torch.float32:  # sinusoids of 1000 rad
        limit *= 20
    given = inputs(net, 8, dtype)
    expected = evaluate(net, given, "functorch")
    assert expected[1].abs().max() > 0.1
    for formulation in ("fused", "split"):
        found = evaluate(net, given, formulation)
        assert not found[1].requires_grad
        assert_near(found, expected, limit)
        assert torch.equal(found[0], net(*given))


@pytest.mark.parametrize("name", [*ADAPTED, *PLAIN])
def test_tangents_under_bf16_autocast(name):
    """As near to those of float64 as functorch is: the root mean square of five networks' errors."""
    squares = torch.zeros(2, 3)
    for seed in range(5):
        net = NETWORKS[name](seed=seed)
        given = inputs(net, 8)
        found = [evaluate(net, given, kind, autocast=True) for kind in ("fused", "functorch")]
        exact = evaluate(net.double(), inputs(net, 8, torch.float64), "fused")
        for kind, parts in enumerate(found):
            for part, (rough, right) in enumerate(zip(parts, exact)):
                rough, right = ([z] if torch.is_tensor(z) else z for z in (rough, right))
                squares[kind, part] += relative(rough, right) ** 2 / 5
    ours, functorchs = squares.sqrt()
    assert (ours > 0).all() and (ours <= 1.1 * functorchs).all() and (functorchs < 0.1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", PLAIN)
def test_half_precision_weights(name, dtype):
    """In float16 these networks clip what could overflow."""
    exact = NETWORKS[name]()
    x, t, s, y = inputs(exact, 8)
    found = evaluate(NETWORKS[name](dtype=dtype), (x.to(dtype), t, s, y), "fused")
    assert found[0].dtype == found[1].dtype == dtype
    assert_near(found, evaluate(exact, (x, t, s, y), "fused"), 0.1)


@pytest.mark.parametrize("name", [*ADAPTED, *PLAIN])
def test_the_graph_is_that_of_the_value_alone(name):
    net = NETWORKS[name]()
    x, t, s, y = inputs(net)
    given = [Dual(z, torch.ones_like(z)) for z in (x, t, s)]
    assert saved_sizes(lambda: net(*given, y)) == saved_sizes(lambda: net(x, t, s, y))


@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointed_by_diffusers(name):
    net = NETWORKS[name]()
    given = inputs(net)
    expected = evaluate(net, given, "fused")
    net.transformer.enable_gradient_checkpointing()
    assert_near(evaluate(net, given, "fused"), expected, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpoint"), [*((name, True) for name in ADAPTED), (ADAPTED[0], False)])
def test_compiled_block_by_block(name, checkpoint):
    torch.compiler.reset()
    net, plain = NETWORKS[name](), NETWORKS[name]()
    given = inputs(net, 8)
    expected = evaluate(plain, given, "fused")
    parallel.apply_compile_and_checkpointing(net, checkpoint, "aot_eager")
    assert_near(evaluate(net, given, "fused"), expected, 1e-5)
    teacher = AdaptersOff(net)(*given)
    assert relative([teacher], [AdaptersOff(plain)(*given)]) < 1e-5
    assert relative([net(*given)], [plain(*given)]) < 1e-5


def test_one_block_compiled():
    """Traced whole, value and tangent, and run without a compiler."""
    torch.compiler.reset()
    net, plain = (sd3_network(layers=1, dual_attention=1) for _ in range(2))
    given = inputs(net, 8)
    parallel.apply_compile_and_checkpointing(net, compile="eager")
    assert_near(evaluate(net, given, "fused"), evaluate(plain, given, "fused"), 1e-6)


def _share(rank: int, folder: Path) -> None:
    shard = partial(parallel.shard, device=torch.device("cpu"), processes=2)
    for name in ADAPTED[1:]:
        for layout, wrap in (("ddp", DistributedDataParallel), ("fsdp2", shard)):
            net = NETWORKS[name](dtype=torch.float64)
            given = inputs(net, 8, torch.float64)
            found = evaluate(wrap(net), given, "fused", slice(4 * rank, 4 * rank + 4))
            gradients = [parallel.full_tensor(gradient) for gradient in found[2]]
            if rank == 0:
                torch.save([found[0].detach(), found[1], *gradients], folder / f"{name}-{layout}.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Each with half of the rows, replicated or sharded, in float64. SD3: test_backbones_sd3.py."""
    in_two_processes(_share, tmp_path)
    for name in ADAPTED[1:]:
        net = NETWORKS[name](dtype=torch.float64)
        value, tangent, gradients = evaluate(net, inputs(net, 8, torch.float64), "fused")
        for layout in ("ddp", "fsdp2"):
            found = torch.load(tmp_path / f"{name}-{layout}.pt", weights_only=True)
            limit = 1e-6 if "sana" in name else 1e-13  # its attention is in float32
            assert relative(found, [value[:4], tangent[:4], *gradients]) < limit, (name, layout)
