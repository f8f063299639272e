"""Networks and their layers on dual numbers, against torch.func.jvp of the same forward."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from tangents import saved_sizes
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones import build, layers
from fewstep.core.dual import Dual
from fewstep.core.jvp import forward_with_jvp

SIT = {"norm": "layer", "mlp": "gelu", "rope": False, "patch": 2}
FLAGS = [
    dict(zip(("target_time", "qk_norm", "patch", "outputs"), flags))
    for flags in itertools.product((False, True), (False, True), (1, 2), (1, 2))
]
FLAGS += [
    SIT | {"target_time": True},
    SIT | {"outputs": 2},
    {"norm": "layer"},
    {"norm": "rms-plain", "qk_norm": True},
    {"mlp": "gelu"},
    {"rope": False},
]


def reference(function, values, tangents):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, tuple(values), tuple(tangents))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Norm("rms", 6), (2, 3, 6)),
        (layers.Norm("rms-plain", 6), (2, 3, 6)),
        (layers.Norm("layer", 6), (2, 3, 6)),
        (layers.SwiGLU(6, 9), (2, 3, 6)),
        (layers.Gelu(6, 9), (2, 3, 6)),
        (layers.TimeEmbedding(6, 8, 2.0, 50.0), (4,)),
        (layers.PatchEmbedding(2, 5, 2), (2, 2, 4, 6)),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, torch.nn.Module) else "",
)
def test_layers(layer, shape):
    check(layer.double(), shape)


def test_rotations():
    check(partial(layers.rotate, turns=layers.RotaryTable(2, 3, 8).double()()), (2, 2, 6, 8))


@pytest.mark.parametrize("kind", ["rms", "rms-plain", "layer"])
def test_modulated_norms(kind):
    check(layers.Norm(kind, 6).double(), (2, 3, 6), (2, 1, 6), (2, 1, 6))


def check(function, *shapes):
    """``function`` on duals of random values in the given shapes."""
    draws = torch.Generator().manual_seed(5)
    values, tangents = zip(
        *(torch.randn(2, *shape, generator=draws, dtype=torch.float64) for shape in shapes)
    )
    found = function(*map(Dual, values, tangents))
    assert torch.equal(found.value, function(*values))
    assert not found.tangent.requires_grad and found.tangent.abs().max() > 1e-3
    expected = reference(function, values, tangents)[1]
    torch.testing.assert_close(found.tangent, expected, rtol=1e-12, atol=1e-12)


def directions(x, t, s):
    draws = torch.Generator().manual_seed(6)
    return tuple(torch.randn(z.shape, generator=draws, dtype=torch.float64).to(z.dtype) for z in (x, t, s))


def as_pair(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(f"{k}={v}" for k, v in flags.items()))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_network(flags, dtype, spec, active, inputs):
    """Value and its gradient bitwise those of the plain forward, tangent that of torch.func.jvp."""
    one = spec(**flags)
    net = active(one, dtype, target=True)
    x, t, s, y = inputs(one, dtype=dtype)
    tangents = directions(x, t, s)
    swept, derivative = map(as_pair, forward_with_jvp(net, (x, t, s), tangents, y))
    plain = as_pair(net(x, t, s, y))
    weights = [w for w in net.parameters() if w.requires_grad]
    expected = as_pair(reference(lambda x, t, s: net(x, t, s, y), (x, t, s), tangents)[1])
    exact = {torch.float64: 1e-12, torch.float32: 2e-4}[dtype]
    for value, ordinary, tangent, jvp in zip(swept, plain, derivative, expected, strict=True):
        assert torch.equal(value, ordinary)
        assert not tangent.requires_grad and tangent.dtype == dtype and tangent.abs().max() > 0.1
        assert (tangent - jvp).abs().max() <= exact * jvp.abs().max()
    losses = [sum((v * d.detach()).mean() for v, d in zip(values, derivative)) for values in (swept, plain)]
    for ours, ordinary in zip(*(torch.autograd.grad(loss, weights) for loss in losses), strict=True):
        assert torch.equal(ours, ordinary)


@pytest.mark.parametrize(
    "flags", [{"qk_norm": False}, {"qk_norm": True}, SIT], ids=["plain", "qk_norm", "sit"]
)
def test_network_under_bf16_autocast(flags, spec, active, inputs):
    one = spec(**flags, target_time=True)
    net = active(one, target=True)
    x, t, s, y = inputs(one)
    tangents = directions(x, t, s)
    exact = forward_with_jvp(net, (x, t, s), tangents, y)[1]
    with torch.autocast("cpu", torch.bfloat16):
        value, rough = forward_with_jvp(net, (x, t, s), tangents, y)
        plain = net(x, t, s, y)
    assert torch.equal(value, plain) and rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.1 * exact.norm()
    weights = [w for w in net.parameters() if w.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):  # a fresh cache of cast weights, filled by the sweep
        value, _ = forward_with_jvp(net, (x, t, s), tangents, y)
    gradients = (torch.autograd.grad(v.square().mean(), weights) for v in (value, plain))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_half_precision_weights(spec, active, inputs):
    one = spec(qk_norm=True, target_time=True)
    x, t, s, y = inputs(one)
    tangents = directions(x, t, s)
    exact = forward_with_jvp(active(one, target=True), (x, t, s), tangents, y)[1]
    net = active(one, torch.bfloat16, target=True)
    halves = (tangents[0].bfloat16(), *tangents[1:])
    value, rough = forward_with_jvp(net, (x.bfloat16(), t, s), halves, y)
    assert value.dtype == rough.dtype == torch.bfloat16
    assert (rough - exact).norm() < 0.15 * exact.norm()


def test_tangents_carry_no_graph_in(spec, active, inputs):
    one = spec()
    x, t, s, y = inputs(one)
    dx, dt, ds = directions(x, t, s)
    _, tangent = forward_with_jvp(active(one), (x, t, s), (dx.requires_grad_(), dt, ds), y)
    assert not tangent.requires_grad


@pytest.mark.parametrize("flags", [{"qk_norm": True}, SIT], ids=["qk_norm", "sit"])
def test_the_graph_is_that_of_the_value_alone(flags, spec, active, inputs):
    """Memory: tensors saved for the backward are as many and as large as those of a plain forward."""
    one = spec(**flags, target_time=True)
    net = active(one, target=True)
    x, t, s, y = inputs(one)
    duals = map(Dual, (x, t, s), directions(x, t, s))
    assert saved_sizes(lambda: net(*duals, y)) == saved_sizes(lambda: net(x, t, s, y))


def test_patches_of_an_image_reach_a_fresh_network_as_zero(spec, inputs):
    one = spec()
    x, t, s, y = inputs(one)
    value, tangent = forward_with_jvp(build(one), (x, t, s), directions(x, t, s), y)
    assert not value.any() and not tangent.any()
