"""The networks for points and pixels: what they return, their tangents, their sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fewstep.backbones import build, null_label
from fewstep.backbones.model_file import load_compatible
from fewstep.bench.estimate import parameters
from fewstep.config.networks import Mlp, UNet
from fewstep.core.jvp import value_and_tangent


def mlp(**changes) -> Mlp:
    values = {"kind": "mlp", "shape": [2, 1, 1], "classes": 3, "width": 16, "time_features": 8}
    return Mlp(**values | {"time_scale": 3.0} | changes)


def unet(**changes) -> UNet:
    values = {
        "kind": "unet",
        "shape": [3, 8, 8],
        "classes": 3,
        "width": 8,
        "multipliers": [1, 2],
        "groups": 4,
    }
    return UNet(**values | {"depth": 1, "attention": [4], "time_features": 8, "time_scale": 3.0} | changes)


SPECS = [mlp(), mlp(outputs=2), unet(), unet(outputs=2)]
NAMES = ["mlp", "mlp-2", "unet", "unet-2"]
every = pytest.mark.parametrize("spec", SPECS, ids=NAMES)


def awake(spec: Mlp | UNet, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network without the zeros that a fresh one starts with."""
    torch.manual_seed(3)
    net = build(spec)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight.normal_(std=0.2)
    return net.to(dtype)


def inputs(spec: Mlp | UNet, dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, ...], Tensor]:
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(3, *spec.shape, generator=draws, dtype=dtype)
    t, s = torch.rand(2, 3, generator=draws, dtype=dtype)
    return (x, t, s), torch.tensor([0, 2, null_label(spec)])


def outputs(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@every
def test_it_starts_at_zero_and_independent_of_the_target_time(spec):
    torch.manual_seed(0)
    net = build(spec).double()
    (x, t, s), y = inputs(spec)
    found = outputs(net(x, t, s, y))
    assert len(found) == spec.outputs
    for value in found:
        assert value.shape == x.shape and value.dtype == x.dtype and not value.any()
    for head in (net.final_layer, net.final_layer_u):
        if head is not None:
            nn.init.normal_(head.weight)
    for one, other in zip(outputs(net(x, t, s, y)), outputs(net(x, t, 1 - s, y))):
        assert one.any() and torch.equal(one, other)


@every
def test_both_times_count(spec):
    net = awake(spec)
    (x, t, s), y = inputs(spec)
    for value, *others in zip(*(outputs(net(x, *times, y)) for times in ((t, s), (1 - t, s), (t, 1 - s)))):
        assert not any(torch.allclose(value, other, atol=1e-3) for other in others)


@every
@pytest.mark.parametrize("formulation", ["fused", "split", "central"])
def test_tangents_are_the_derivative(spec, formulation):
    """By forward mode through convolutions, group norms and attention; the MLP by its own rules."""
    net = awake(spec)
    point, y = inputs(spec)
    draws = torch.Generator().manual_seed(5)
    directions = tuple(torch.randn(z.shape, generator=draws, dtype=z.dtype) for z in point)
    value, tangent = value_and_tangent(net, point, directions, y, formulation)
    with torch.no_grad():
        ahead = net(*(z + 1e-5 * dz for z, dz in zip(point, directions)), y)
        behind = net(*(z - 1e-5 * dz for z, dz in zip(point, directions)), y)
    loose = {"rtol": 2e-3, "atol": 2e-3} if formulation == "central" else {"rtol": 1e-5, "atol": 1e-6}
    for v, d, a, b, plain in zip(*map(outputs, (value, tangent, ahead, behind, net(*point, y)))):
        assert v.requires_grad and not d.requires_grad and torch.allclose(v, plain)
        torch.testing.assert_close(d, (a - b) / 2e-5, **loose)


@every
def test_every_weight_gets_a_gradient(spec):
    net = awake(spec)
    point, y = inputs(spec)
    sum(value.square().sum() for value in outputs(net(*point, y))).backward()
    without = [name for name, weight in net.named_parameters() if weight.grad is None]
    assert not without


@pytest.mark.parametrize("make", [mlp, unet])
def test_an_unconditional_network_ignores_labels(make):
    net = awake(make(conditional=False))
    (x, t, s), y = inputs(make())
    assert torch.equal(net(x, t, s, y), net(x, t, s, 0 * y))
    net = awake(make())
    assert not torch.allclose(net(x, t, s, y), net(x, t, s, 0 * y))


@pytest.mark.parametrize("make", [mlp, unet])
def test_a_student_starts_as_its_teacher(make):
    teacher, student = awake(make(target_time=False)), awake(make(outputs=2))
    load_compatible(student, teacher.state_dict(), "teacher")
    student.r_embedder.mlp[2].weight.data.zero_()
    student.r_embedder.mlp[2].bias.data.zero_()
    (x, t, s), y = inputs(make())
    velocity, jump = student(x, t, s, y)
    assert torch.equal(velocity, teacher(x, t, None, y)) and torch.equal(jump, velocity)


@every
def test_the_plan_knows_its_size(spec):
    count = sum(weight.numel() for weight in build(spec).parameters())
    assert parameters(spec) == pytest.approx(count, rel=3e-3)


def test_cifar_sized_networks_have_56_million_weights():
    """SongUNet in DDPM++ form has 55.73 M, without a second time."""
    spec = UNet(kind="unet", shape=[3, 32, 32], classes=10, conditional=False, time_features=128)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in build(spec).parameters())
        both = sum(weight.numel() for weight in build(spec.model_copy(update={"outputs": 2})).parameters())
    assert count == 56_391_939
    assert both - count == 256 * 3 * 9 + 3
    assert parameters(spec) == pytest.approx(count, rel=3e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3, 6, 8]}, "square"),
        ({"attention": [5]}, "sides"),
        ({"groups": 3}, "groups"),
    ],
)
def test_impossible_unets_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        unet(**change)
