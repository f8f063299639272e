"""The networks for points and pixels: what they return, their tangents, their sizes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from test_backbones_formulations import TOLERANCES
from torch import Tensor, nn

from fewstep.backbones import build
from fewstep.backbones.model_file import load_compatible
from fewstep.bench.estimate import parameters
from fewstep.config.backbones import Mlp, UNet
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
    return (x, t, s), torch.tensor([0, 2, spec.null])


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


def evaluate(spec, formulation: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Values, tangents, and gradients of a loss that uses both."""
    net = awake(spec)
    point, y = inputs(spec)
    draws = torch.Generator().manual_seed(5)
    directions = tuple(torch.randn(z.shape, generator=draws, dtype=z.dtype) for z in point)
    values, tangents = map(outputs, value_and_tangent(net, point, directions, y, formulation))
    assert not any(tangent.requires_grad for tangent in tangents)
    loss = sum((v * d + v.square()).mean() for v, d in zip(values, tangents))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return [value.detach() for value in values], tangents, list(gradients)


@every
@pytest.mark.parametrize("formulation", ["fused", "split", "central"])
def test_value_tangent_and_gradient_are_those_of_functorch(spec, formulation):
    """Through convolutions, group norms, attention and changes of resolution."""
    found, expected = evaluate(spec, formulation), evaluate(spec, "functorch")
    for part, ours, theirs in zip(("value", "tangent", "gradient"), found, expected):
        limit = TOLERANCES[formulation]["float64"][part]
        difference = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True)) ** 0.5
        norm = sum(float(b.square().sum()) for b in theirs) ** 0.5
        assert norm > 0.01 and difference <= limit * norm, part


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
