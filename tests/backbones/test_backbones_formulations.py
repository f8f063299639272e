"""Every formulation of the tangent against functorch, on LightningDiT with every flag, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from test_backbones_dual import FLAGS, as_pair, directions
from torch import Tensor

from fewstep.core.jvp import FORMULATIONS, TOLERANCES, value_and_tangent
from fewstep.core.precision import upcast


def evaluate(net, given, formulation: str, precision: str) -> dict[str, list[Tensor]]:
    """Values, tangents, and gradients of a loss that uses both."""
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        values, tangents = map(as_pair, value_and_tangent(net, *given, formulation))
        loss = sum((upcast(v) * upcast(d) + upcast(v).square()).mean() for v, d in zip(values, tangents))
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights)
    return {"value": [value.detach() for value in values], "tangent": tangents, "gradient": gradients}


def distance(ours, theirs) -> float:
    """Of all tensors together, relative to their norm."""
    pairs = list(zip(ours, theirs, strict=True))
    assert all(a.isfinite().all() and a.shape == b.shape for a, b in pairs)
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.double().square().sum()) for _, b in pairs)) ** 0.5


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, list[Tensor]]]:
    return {}


CASES = [(formulation, precision) for formulation in TOLERANCES for precision in TOLERANCES[formulation]]


def test_every_formulation_has_its_tolerances():
    assert {*TOLERANCES, "functorch"} == set(FORMULATIONS)


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: "-".join(f"{k}={v}" for k, v in flags.items()))
@pytest.mark.parametrize(("formulation", "precision"), CASES)
def test_equal_to_functorch(
    formulation, flags, precision, spec: Callable, active: Callable, inputs: Callable, references
):
    dtype = torch.float64 if precision == "float64" else torch.float32
    one = spec(**flags)
    net = active(one, dtype, target=True)
    x, t, s, y = inputs(one, dtype=dtype)
    given = (x, t, s), directions(x, t, s), y
    key = f"{flags} {precision}"
    if key not in references:
        references[key] = evaluate(net, given, "functorch", precision)
    found = evaluate(net, given, formulation, precision)
    for name, limit in TOLERANCES[formulation][precision].items():
        assert distance(found[name], references[key][name]) <= limit, name
