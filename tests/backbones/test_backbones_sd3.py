"""SD3 by diffusers: its clock, its second time, its adapters; its tangents in two processes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from child_processes import in_two_processes
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("diffusers")
pytest.importorskip("peft")
from tangents import evaluate, relative, trained
from tiny_sd3 import ADAPTERS, Store, inputs, network, sd3

from fewstep.backbones import build
from fewstep.backbones.lora import AdaptersOff
from fewstep.backbones.model_file import load_compatible
from fewstep.config.backbones import Lora, Sd3
from fewstep.core.precision import cast_blocks
from fewstep.core.wrappers import trained_state
from fewstep.training import parallel


def test_it_is_diffusers_network_at_sd3s_clock():
    """timestep = 1000 (1 - t), velocity = -(noise - data), to the last bit."""
    spec = sd3(target_time=False, time_scale=1000.0)
    net = network(spec)
    x, t, s, y = inputs(spec)
    context, pooled = net.text(y)
    theirs = net.transformer(x, context, pooled, 1000 * (1 - t)).sample
    assert torch.equal(net(x, t, s, y), -theirs)


def test_published_names_stay():
    spec = sd3(target_time=False)
    plain = set(build(spec).transformer.state_dict())
    from diffusers import SD3Transformer2DModel

    assert plain == set(SD3Transformer2DModel.from_config(build(spec).transformer.config).state_dict())
    student = set(build(sd3()).state_dict())
    added = {name for name in student if name.removeprefix("transformer.") not in plain}
    prefix = "transformer.time_text_embed.target_embedder."
    assert added == {prefix + f"linear_{n}.{part}" for n in (1, 2) for part in ("weight", "bias")}


def test_the_default_is_sd35_medium():
    """2.243 billion weights, as published, and DE-CM's adapters: 48.1 million."""
    with torch.device("meta"):
        net = build(Sd3(kind="sd3", shape=[16, 128, 128], target_time=False, lora=Lora(rank=64)))
    sizes = {name: weight.numel() for name, weight in net.named_parameters()}
    adapters = sum(size for name, size in sizes.items() if ".lora_" in name)
    assert adapters == pytest.approx(48.1e6, rel=2e-3)
    assert sum(sizes.values()) - adapters == pytest.approx(2.243e9, rel=5e-4)


def test_a_student_starts_as_its_teacher():
    """Adapters and the target time add nothing at first, whatever s is."""
    teacher = network(sd3(target_time=False))
    x, t, s, y = inputs(sd3())
    student = build(sd3(lora=ADAPTERS))
    load_compatible(student, teacher.state_dict(), "teacher")
    student.text = teacher.text
    assert torch.equal(student(x, t, s, y), teacher(x, t, s, y))
    prefix = "transformer.time_text_embed.target_embedder."
    own = {name for name, _ in student.named_parameters() if ".lora_" in name or name.startswith(prefix)}
    assert set(trained_state(student)) == own == {n for n, w in student.named_parameters() if w.requires_grad}
    with torch.no_grad():
        for weight in trained(student):
            weight.add_(0.1)
    assert not torch.allclose(student(x, t, s, y), student(x, t, t, y), rtol=1e-3)


def test_time_scale_slows_the_time():
    """With a 50th of the frequencies, a 50th of the way through time looks like all of it."""
    slow, fast = (network(sd3(target_time=False, time_scale=scale)) for scale in (20.0, 1000.0))
    x, t, s, y = inputs(sd3())
    torch.testing.assert_close(slow(x, t, s, y), fast(x, 1 - (1 - t) / 50, s, y), rtol=1e-4, atol=1e-4)


def test_times_are_never_half_precision():
    spec = sd3()
    net = network(spec)
    x, t, s, y = inputs(spec)
    found = []
    net.transformer.time_text_embed.register_forward_hook(lambda _, given, out: found.append((given, out)))
    with torch.autocast("cpu", torch.bfloat16):
        net(x, t.bfloat16(), s, y)
    (times, pooled), embedded = found[0]
    assert times.dtype == pooled.dtype == embedded.dtype == torch.float32
    net.text = Store(torch.bfloat16)
    net(x, t, s, y)
    assert found[1][0][1].dtype == found[1][1].dtype == torch.float32


def test_without_captions():
    net = build(sd3())
    with pytest.raises(ValueError, match="text store"):
        net(*inputs(sd3()))


@pytest.mark.parametrize("targets", [["attn.to_q", "attn3.to_q"], ["attn"], ["q"]])
def test_targets_that_are_no_layer(targets):
    with pytest.raises(ValueError, match=rf"backbone.lora.targets: {targets[-1]} is the end of no linear"):
        build(sd3(lora=Lora(rank=2, targets=targets)))


def test_adapters_are_scaled_by_alpha():
    x, t, s, y = inputs(sd3())
    one, four = (network(sd3(lora=Lora(rank=2, alpha=alpha))) for alpha in (None, 8.0))
    for name, weight in one.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(4)
    torch.testing.assert_close(four(x, t, s, y), one(x, t, s, y))


def test_adapters_off_is_the_base():
    """To the last bit, as a network of one time; and adapters are on again, after an error too."""
    base = network(sd3(target_time=False))
    net = network(sd3(lora=ADAPTERS))
    load_compatible(net, base.state_dict(), "base")
    x, t, s, y = inputs(sd3())
    off, before = AdaptersOff(net), net(x, t, s, y)
    assert torch.equal(off(x, t, s, y), base(x, t, s, y))
    assert not off(x, t, s, y).requires_grad
    assert not torch.allclose(before, base(x, t, s, y), rtol=1e-2)
    with pytest.raises(RuntimeError):
        off(torch.cat([x, x], dim=1), t, s, y)
    assert torch.equal(net(x, t, s, y), before)
    assert all(weight.requires_grad == (name in net.trained) for name, weight in net.named_parameters())


def test_adapters_off_between_forward_and_backward():
    """Recomputed blocks have their adapters."""
    x, t, s, y = inputs(sd3())
    gradients = []
    for checkpoint in (False, True):
        net = network(sd3(lora=ADAPTERS))
        parallel.apply_compile_and_checkpointing(net, checkpoint)
        value = net(x, t, s, y)
        AdaptersOff(net)(x, t, s, y)
        value.square().mean().backward()
        gradients.append([weight.grad for weight in trained(net)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_cast_blocks_leaves_adapters():
    net = network(sd3(lora=ADAPTERS))
    x, t, s, y = inputs(sd3())
    with torch.autocast("cpu", torch.bfloat16):
        before = net(x, t, s, y)
        cast_blocks(net, torch.bfloat16)
        assert torch.equal(net(x, t, s, y), before)
    assert {weight.dtype for weight in trained(net)} == {torch.float32}
    assert net.blocks[0].attn.to_q.base_layer.weight.dtype == torch.bfloat16


SHARED = {"lora": ADAPTERS, "layers": 2}
CASES = [
    (layout, formulation, checkpoint, compiler)
    for layout in ("ddp", "fsdp2")
    for formulation in ("fused", "split")
    for checkpoint in (False, True)
    for compiler in ("", "aot_eager")
    if formulation == "fused" or (layout == "ddp" and not compiler)
]


def _share(rank, folder):
    spec = sd3(**SHARED)
    for number, (layout, formulation, checkpoint, compiler) in enumerate(CASES):
        net = network(spec, torch.float64)
        parallel.apply_compile_and_checkpointing(net, checkpoint, compiler)
        shard = partial(parallel.shard, device=torch.device("cpu"), processes=2)
        net = (DistributedDataParallel if layout == "ddp" else shard)(net)
        teacher = AdaptersOff(net)
        x, t, s, y = (z[rank * 4 : rank * 4 + 4] for z in inputs(spec, 8, torch.float64))
        before = parallel.full_tensor(teacher(x, t, s, y))
        found = evaluate(net, inputs(spec, 8, torch.float64), formulation, slice(rank * 4, rank * 4 + 4))
        assert torch.equal(teacher(x, t, s, y), before)
        gradients = [parallel.full_tensor(gradient) for gradient in found[2]]
        if rank == 0:
            torch.save([before, found[0].detach(), found[1], *gradients], folder / f"{number}.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Each with half of the rows; replicated or sharded, recomputed or not, compiled or not."""
    in_two_processes(_share, tmp_path)
    spec = sd3(**SHARED)
    net = network(spec, torch.float64)
    expected = evaluate(net, inputs(spec, 8, torch.float64), "fused")
    teacher = AdaptersOff(net)(*inputs(spec, 8, torch.float64))
    for number, case in enumerate(CASES):
        before, value, tangent, *gradients = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert relative([before], [teacher[:4]]) < 1e-10, case
        assert relative([value, tangent], [z[:4] for z in expected[:2]]) < 1e-10, case
        assert relative(gradients, expected[2]) < 1e-10, case


@pytest.mark.parametrize(
    ("formulation", "layout", "scale"),
    [("split", "fsdp2", 20.0), ("functorch", "ddp", 20.0), ("central", "none", 1000.0)],
)
def test_what_is_refused(formulation, layout, scale):
    with pytest.raises(ValueError, match=f"--tangent {formulation}"):
        parallel.check_supported(formulation, layout, False, False, time_scale=scale)


def test_why_a_difference_of_sd3s_own_time_is_refused():
    with pytest.raises(ValueError, match=r"5 rad of the fastest sinusoid .*time_scale: 1000.*reembed"):
        parallel.check_supported("central", "none", False, False, time_scale=1000.0)
    parallel.check_supported("central", "none", False, False, time_scale=20.0)
    spec = sd3(time_scale=1000.0)
    net = network(spec, torch.float64)
    given = inputs(spec, 8, torch.float64)
    exact, difference = (evaluate(net, given, kind)[1] for kind in ("fused", "central"))
    assert relative([difference], [exact]) > 0.1
