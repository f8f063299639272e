"""LightningDiT: names and shapes of the published checkpoints, and what the network computes."""

from __future__ import annotations

import pytest
import torch
from recorded_operations import Recorder
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones import build
from fewstep.backbones.layers import unpatchify
from fewstep.backbones.model_file import load_compatible
from fewstep.config.backbones import LightningDiT
from fewstep.core.jvp import value_and_tangent

XL = {"shape": [32, 16, 16], "classes": 1000, "depth": 28, "width": 1152, "heads": 16}


def table(qk_norm: bool, target_time: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published XL/1 state dicts, written out independently of the code."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 256, 1152),
        "x_embedder.proj.weight": (1152, 32, 1, 1),
        "x_embedder.proj.bias": (1152,),
        "y_embedder.embedding_table.weight": (1001, 1152),
        "feat_rope.freqs_cos": (256, 72),
        "feat_rope.freqs_sin": (256, 72),
        "final_layer.norm_final.weight": (1152,),
        "final_layer.linear.weight": (32, 1152),
        "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (2304, 1152),
        "final_layer.adaLN_modulation.1.bias": (2304,),
    }
    for name in ("t_embedder", "r_embedder") if target_time else ("t_embedder",):
        shapes |= {
            f"{name}.mlp.0.weight": (1152, 256),
            f"{name}.mlp.0.bias": (1152,),
            f"{name}.mlp.2.weight": (1152, 1152),
            f"{name}.mlp.2.bias": (1152,),
        }
    for block in (f"blocks.{i}." for i in range(28)):
        shapes |= {
            f"{block}norm1.weight": (1152,),
            f"{block}norm2.weight": (1152,),
            f"{block}attn.qkv.weight": (3456, 1152),
            f"{block}attn.qkv.bias": (3456,),
            f"{block}attn.proj.weight": (1152, 1152),
            f"{block}attn.proj.bias": (1152,),
            f"{block}mlp.w12.weight": (6144, 1152),
            f"{block}mlp.w12.bias": (6144,),
            f"{block}mlp.w3.weight": (1152, 3072),
            f"{block}mlp.w3.bias": (1152,),
            f"{block}adaLN_modulation.1.weight": (6912, 1152),
            f"{block}adaLN_modulation.1.bias": (6912,),
        }
        if qk_norm:
            shapes |= {f"{block}attn.q_norm.weight": (72,), f"{block}attn.k_norm.weight": (72,)}
    return shapes


@pytest.mark.parametrize(
    ("qk_norm", "target_time", "tensors", "parameters", "trainable"),
    [
        (False, False, 351, 675_256_736, 674_961_824),
        (True, False, 407, 675_260_768, 674_965_856),
        (True, True, 411, 676_885_088, 676_590_176),
    ],
)
def test_xl_has_the_published_names_and_shapes(qk_norm, target_time, tensors, parameters, trainable):
    with torch.device("meta"):
        net = build(LightningDiT(**XL, qk_norm=qk_norm, target_time=target_time))
    state = net.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == table(qk_norm, target_time)
    assert len(state) == tensors
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable


def test_xl_runs_on_the_meta_device():
    with torch.device("meta"):
        net = build(LightningDiT(**XL))
        times = torch.empty(2)
        labels = torch.zeros(2, dtype=torch.long)
        assert net(torch.empty(2, 32, 16, 16), times, times, labels).shape == (2, 32, 16, 16)


def test_a_second_head_adds_one_final_layer():
    with torch.device("meta"):
        one, two = (build(LightningDiT(**XL, outputs=outputs)) for outputs in (1, 2))
    added = set(two.state_dict()) - set(one.state_dict())
    assert added == {
        name.replace("final_layer", "final_layer_u")
        for name in one.state_dict()
        if name.startswith("final_layer.")
    }


def test_the_second_head_of_dit_is_of_less_than_half_a_percent():
    """SiT-XL/2 has 675 M weights; the final layer of patches of 2 x 2 x 4 numbers 2.675 M."""
    sit = XL | {"shape": [4, 32, 32], "patch": 2, "norm": "layer", "mlp": "gelu", "rope": False}
    with torch.device("meta"):
        nets = [build(LightningDiT(**sit, target_time=False, outputs=outputs)) for outputs in (1, 2)]
    one, two = (sum(p.numel() for p in net.parameters()) for net in nets)
    assert two - one == 1152 * 2304 + 2304 + 1152 * 16 + 16 == 2_674_960
    assert (two - one) / one < 0.005


def test_initialisation_follows_the_recipe(spec):
    torch.manual_seed(0)
    net = build(spec(width=192, heads=4, classes=400, target_time=True, outputs=2))
    for layer in (*net.blocks, net.final_layer, net.final_layer_u):
        assert not layer.adaLN_modulation[1].weight.any() and not layer.adaLN_modulation[1].bias.any()
    assert not net.final_layer.linear.weight.any()
    assert not net.r_embedder.mlp[2].weight.any() and not net.r_embedder.mlp[2].bias.any()
    for weight in (
        net.y_embedder.embedding_table.weight,
        net.t_embedder.mlp[0].weight,
        net.t_embedder.mlp[2].weight,
        net.r_embedder.mlp[0].weight,
    ):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    qkv = net.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx((6 / (4 * 192)) ** 0.5, rel=0.01)
    patch = net.x_embedder.proj.weight
    assert patch.abs().max().item() == pytest.approx((6 / (4 + 192)) ** 0.5, rel=0.01)
    assert not net.x_embedder.proj.bias.any()


def test_a_fresh_network_outputs_zero(spec, inputs):
    one = spec()
    assert not build(one)(*inputs(one)).any()


def test_student_with_a_fresh_target_embedding_is_its_teacher_for_every_s(spec, active, inputs):
    teacher = active(spec(qk_norm=True))
    student = build(spec(qk_norm=True, target_time=True))
    load_compatible(student, teacher.state_dict(), "teacher")
    x, t, _, y = inputs(spec())
    expected = teacher(x, t, None, y)
    assert expected.std() > 0.1
    for s in (0.0, 0.3, 1.0):
        assert torch.equal(student(x, t, torch.full_like(t, s), y), expected)


def test_the_target_time_matters_once_its_embedding_is_trained(spec, active, inputs):
    one = spec(target_time=True)
    net = active(one, target=True)
    x, t, s, y = inputs(one)
    assert (net(x, t, s, y) - net(x, t, 1 - s, y)).abs().max() > 1e-2
    with pytest.raises(ValueError, match="give s"):
        net(x, t, None, y)


def test_the_heads_start_equal_and_are_separate(spec, active, inputs):
    teacher = active(spec())
    net = build(spec(outputs=2))
    load_compatible(net, teacher.state_dict(), "teacher")
    arguments = inputs(spec())
    velocity, flow_map = net(*arguments)
    assert torch.equal(velocity, teacher(*arguments)) and torch.equal(velocity, flow_map)
    with torch.no_grad():
        net.final_layer_u.linear.bias += 1
    velocity, flow_map = net(*arguments)
    assert torch.equal(velocity, teacher(*arguments))
    torch.testing.assert_close(flow_map, velocity + 1)


def test_the_null_label_is_the_last_row_of_the_table(spec):
    one = spec()
    assert one.null == 5
    assert build(one).y_embedder.embedding_table.weight.shape[0] == one.null + 1


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "outputs": 2}, {"patch": 2, "target_time": True}])
def test_state_dict_round_trip(spec, active, inputs, changes):
    one = spec(**changes)
    net = active(one)
    torch.manual_seed(9)
    other = build(one)
    other.load_state_dict(net.state_dict())
    for a, b in zip(*(n(*inputs(one)) for n in (net, other)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_keep_their_place(spec, patch):
    """Patches that hold their own pixels, channels last, give the image back."""
    one = spec(patch=patch)
    image = torch.randn(2, *one.shape)
    channels, height, width = one.shape
    blocks = image.reshape(2, channels, height // patch, patch, width // patch, patch)
    patches = blocks.permute(0, 2, 4, 3, 5, 1).reshape(2, -1, patch * patch * channels)
    assert torch.equal(unpatchify(patches, (height // patch, width // patch), patch), image)


def test_patch_two_is_a_function_of_the_whole_image(spec, active, inputs):
    one = spec(patch=2)
    net = active(one)
    x, t, s, y = inputs(one)
    assert net.pos_embed.shape == (1, 6, 24)
    result = net(x, t, s, y)
    assert result.shape == x.shape
    changed = x.clone()
    changed[:, 0, 0, 0] += 1
    difference = (net(changed, t, s, y) - result).abs().amax((0, 1))
    assert (difference > 0).all()


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("outputs", [1, 2])
def test_jvp_agrees_with_central_differences(spec, active, inputs, qk_norm, outputs):
    one = spec(qk_norm=qk_norm, target_time=True, outputs=outputs)
    net = active(one, torch.float64, target=True)
    x, t, s, y = inputs(one, dtype=torch.float64)
    direction = (torch.randn_like(x), torch.full_like(t, 0.7), torch.full_like(s, -0.4))

    def moved(h: float):
        return net(*(value + h * d for value, d in zip((x, t, s), direction)), y)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(lambda x, t, s: net(x, t, s, y), (x, t, s), direction)
        h = 1e-5
        plain, plus, minus = moved(0.0), moved(h), moved(-h)
    if outputs == 1:
        value, tangent, plain, plus, minus = ((v,) for v in (value, tangent, plain, plus, minus))
    for v, d, p, a, b in zip(value, tangent, plain, plus, minus, strict=True):
        torch.testing.assert_close(v, p, rtol=1e-12, atol=1e-12)
        assert d.abs().max() > 0.1
        torch.testing.assert_close(d, (a - b) / (2 * h), rtol=1e-6, atol=1e-7)


def test_samples_of_a_batch_do_not_mix(spec, active, inputs):
    one = spec(qk_norm=True)
    net = active(one, torch.float64)
    arguments = inputs(one, dtype=torch.float64)
    whole = net(*arguments)
    alone = torch.cat([net(*(value[i : i + 1] for value in arguments)) for i in range(3)])
    torch.testing.assert_close(whole, alone)


def test_bf16_autocast_stays_close_and_keeps_the_conditioning_exact(spec, active, inputs):
    one = spec(qk_norm=True, target_time=True)
    net = active(one, target=True)
    x, t, s, y = inputs(one)
    exact, condition = net(x, t, s, y), net.condition(t, s, y)
    with torch.autocast("cpu", torch.bfloat16):
        rough, conditioned = net(x, t, s, y), net.condition(t, s, y)
        rough.square().mean().backward()
    assert rough.dtype == torch.float32 and conditioned.dtype == torch.float32
    assert torch.equal(conditioned, condition)
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)


def test_bf16_autocast_under_jvp(spec, active, inputs):
    one = spec(target_time=True)
    net = active(one, target=True)
    x, t, s, y = inputs(one)

    def tangent():
        ones = (torch.ones_like(x), torch.ones_like(t), torch.zeros_like(s))
        return torch.func.jvp(lambda *times: net(*times, y), (x, t, s), ones)[1]

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        exact = tangent()
        with torch.autocast("cpu", torch.bfloat16):
            rough = tangent()
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_half_precision_weights(spec, active, inputs):
    one = spec(qk_norm=True)
    x, t, s, y = inputs(one)
    exact = active(one)(x, t, s, y)
    rough = active(one, torch.bfloat16)(x.bfloat16(), t, s, y)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_repeated_blocks_are_told_which_pass_it_is(spec, active, inputs):
    """AFM's deep generators: the pass k of K has the embedding of k / K, the final layer has none."""
    net = active(spec(repeats=2, target_time=True, depth=2), torch.float64, target=True)
    x, t, s, y = inputs(net.spec, dtype=torch.float64)
    c = net.t_embedder(t) + net.y_embedder(y) + net.r_embedder(s)
    h, turns = net.x_embedder(x) + net.pos_embed, net.feat_rope()
    for time in (0.0, 0.5):
        told = c + net.t_embedder(torch.full_like(t, time))
        for block in net.blocks:
            h = block(h, told, turns)
    expected = unpatchify(net.final_layer(h, c), net.grid, net.patch)
    torch.testing.assert_close(net(x, t, s, y), expected, rtol=1e-12, atol=1e-12)
    assert net.units == [] and not net.critic().spec.decoupled and net.critic().spec.repeats == 1


def test_operations_that_a_block_dispatches(spec, active, inputs):
    """At most, views included: value with tangent, its backward, and the value alone."""
    counts = []
    for depth in (1, 2):
        net = active(spec(depth=depth, qk_norm=True, target_time=True))
        *given, y = inputs(net.spec)
        with Recorder() as both:
            value, tangent = value_and_tangent(net, given, given, y)
        with Recorder() as backward:
            (value * tangent).sum().backward()
        with Recorder() as plain:
            net(*given, y)
        counts.append([len(each.seen) for each in (both, backward, plain)])
    assert all(two - one <= most for one, two, most in zip(*counts, (160, 160, 66), strict=True)), counts
