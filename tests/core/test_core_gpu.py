"""Tangents on a GPU: every formulation under autocast, and attention's kernel, against exact ones."""

from __future__ import annotations

import pytest
import torch
from attention_cases import DTYPES, SHAPES, attention, error, inputs
from test_core_fused import SPEC, distance, gradients, student

from fewstep.core import dual
from fewstep.core.jvp import FORMULATIONS, value_and_tangent

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}
"""Largest error of the kernel's tangent relative to its norm."""


def evaluated(formulation: str, precision: torch.dtype) -> list[torch.Tensor]:
    """Value, tangent and the whole gradient of a loss of both, in float32 or under autocast."""
    draws = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, 8, *SPEC.shape, generator=draws).to(DEVICE)
    t, y = torch.rand(8, generator=draws).to(DEVICE), torch.arange(8, device=DEVICE) % 3
    net = student().float().to(DEVICE)
    with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
        value, tangent = value_and_tangent(net, (x, t, (1 + t) / 2), (dx, t, t), y, formulation)
        loss = (value - tangent).float().square().mean()
    loss.backward()
    gradient = torch.cat([each.flatten() for each in gradients(net)])
    return [value.detach().float(), tangent.float(), gradient]


@pytest.mark.parametrize("formulation", ["fused", "split"])
def test_formulations_agree_in_float32(formulation):
    expected = evaluated("functorch", torch.float32)
    assert distance(evaluated(formulation, torch.float32), expected) < 1e-4


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("formulation", [name for name in FORMULATIONS if name != "central"])
def test_formulations_under_autocast(formulation, precision):
    """functorch too, whose backward once got float where it expected half."""
    expected = evaluated("functorch", torch.float32)
    found = evaluated(formulation, precision)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_is_as_exact_as_the_rule(monkeypatch, shape, dtype):
    kernel = pytest.importorskip("fewstep.core.attention_kernel")
    monkeypatch.setattr(dual, "_kernel", None)
    monkeypatch.setattr(kernel, "LONG", 1)
    given = [tensor.to(DEVICE) for tensor in inputs(*SHAPES[shape], DTYPES[dtype])]
    exact = torch.func.jvp(
        lambda q, k, v: (q.shape[-1] ** -0.5 * q @ k.mT).softmax(-1) @ v,
        tuple(z.double() for z in given[::2]),
        tuple(z.double() for z in given[1::2]),
    )[1]
    rule = error(attention(*given).tangent, exact)
    dual.use_attention_kernel(True)
    found = error(attention(*given).tangent, exact)
    assert 0 < found < LIMITS[dtype] and found < 2 * rule
