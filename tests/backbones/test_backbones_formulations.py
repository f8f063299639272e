"""Every formulation of the tangent against functorch, on LightningDiT with every flag, in every precision."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from tangents import relative
from test_backbones_dual import FLAGS, as_pair, directions
from torch import Tensor

from fewstep.core.jvp import FORMULATIONS, value_and_tangent
from fewstep.core.precision import upcast

_SAME = {
    "float64": {"value": 1e-12, "tangent": 1e-12, "gradient": 1e-12},
    "float32": {"value": 2e-6, "tangent": 2e-5, "gradient": 2e-5},
    "bf16": {"value": 0.03, "tangent": 0.2, "gradient": 0.2},
}
TOLERANCES: dict[str, dict[str, dict[str, float]]] = {
    "fused": _SAME,
    "split": _SAME,
    "central": {
        "float64": {"value": 1e-12, "tangent": 5e-3, "gradient": 5e-3},
        "float32": {"value": 2e-6, "tangent": 6e-2, "gradient": 6e-2},
    },
}
"""Largest distance from ``functorch`` in the same precision, relative to its norm, of small networks with
large weights. In bf16 the reference is no nearer to the truth than the others, and ``central`` is useless."""


def evaluate(net, given, formulation: str, precision: str) -> dict[str, list[Tensor]]:
    """Values, tangents, and gradients of a loss that uses both."""
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    with autocast:
        values, tangents = map(as_pair, value_and_tangent(net, *given, formulation))
        loss = sum((upcast(v) * upcast(d) + upcast(v).square()).mean() for v, d in zip(values, tangents))
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, weights)
    return {"value": [value.detach() for value in values], "tangent": tangents, "gradient": gradients}


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
        assert relative(found[name], references[key][name]) <= limit, name
