from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from child_processes import in_two_processes
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from fewstep.core import jvp
from fewstep.core.jvp import FORMULATIONS, value_and_tangent


@pytest.fixture
def arguments():
    draws = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, 5, 4, 2, 2, generator=draws, dtype=torch.float64)
    t, s, dt, ds = torch.rand(4, 5, generator=draws, dtype=torch.float64)
    return (x, t, s), (dx, dt, ds), torch.arange(5) % 4


def evaluate(net, arguments, formulation):
    """Value, tangent, and the gradient of a loss that uses both."""
    value, tangent = value_and_tangent(net, *arguments, formulation)
    assert value.requires_grad and not tangent.requires_grad
    loss = (value * tangent + value.square()).mean()
    return value.detach(), tangent, torch.autograd.grad(loss, list(net.parameters()))


def test_split_is_the_reference(net, arguments):
    value, tangent, gradient = evaluate(net, arguments, "split")
    expected = evaluate(net, arguments, "functorch")
    torch.testing.assert_close(value, expected[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(tangent, expected[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, expected[2], rtol=0, atol=1e-14)


def test_central_difference_is_close(net, arguments):
    value, tangent, gradient = evaluate(net, arguments, "central")
    expected = evaluate(net, arguments, "split")
    assert torch.equal(value, expected[0])
    torch.testing.assert_close(tangent, expected[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(gradient, expected[2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_closed_form(formulation):
    """F = a t x + s^2: dF = a (t dx + x dt) + 2 s ds."""

    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x, t, s, y):
            return self.a * t[:, None, None, None] * x + s[:, None, None, None].square()

    x, dx = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, s, dt, ds = (torch.full((4,), value, dtype=torch.float64) for value in (0.3, 0.5, 2.0, -1.0))
    value, tangent = value_and_tangent(Product(), (x, t, s), (dx, dt, ds), None, formulation)
    torch.testing.assert_close(value.detach(), 0.9 * x + 0.25)
    torch.testing.assert_close(tangent, 3 * (0.3 * dx + 2 * x) - 1.0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_linear_in_the_tangents(net, arguments, formulation):
    inputs, tangents, y = arguments
    _, one = value_and_tangent(net, inputs, tangents, y, formulation)
    _, half = value_and_tangent(net, inputs, tuple(d / 2 for d in tangents), y, formulation)
    torch.testing.assert_close(half, one / 2, rtol=1e-3, atol=1e-4)


MASK = torch.randn(4, 7, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": MASK > -1},
        {"enable_gqa": True},
    ],
    ids=str,
)
def test_attention_written_out_is_that_of_pytorch(options):
    """Value, tangent and gradients in float64."""
    heads = 1 if "enable_gqa" in options else 3
    draws = torch.Generator().manual_seed(5)
    shapes = (2, 3, 4, 6), (2, heads, 7, 6), (2, heads, 7, 5)
    values, tangents = zip(
        *(torch.randn(2, *shape, generator=draws, dtype=torch.float64) for shape in shapes)
    )
    found = []
    for attention in (F.scaled_dot_product_attention, jvp._attention):
        leaves = [value.clone().requires_grad_() for value in values]
        with sdpa_kernel(SDPBackend.MATH):
            value, tangent = torch.func.jvp(partial(attention, **options), (*leaves,), tangents)
        loss = value.square().sum() + tangent.square().sum()
        found.append((value, tangent, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.fixture
def softmax_as_on_cuda():
    """Under autocast a softmax is computed in float32: so on CUDA, and by this on a CPU."""

    def softmax(x, dim, dtype=None):
        with torch.autocast("cpu", enabled=False):
            return torch.softmax(x, dim, dtype=dtype or torch.float32)

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("softmax.int", softmax, "AutocastCPU")
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("formulation", ["functorch", "split"])
def test_attention_under_autocast(formulation, dtype, net, arguments, softmax_as_on_cuda):
    """PyTorch's own has a softmax there whose backward expects another dtype than its forward gave."""
    exact = evaluate(net, arguments, formulation)
    inputs, tangents, y = arguments
    halves = [tuple(z.float() for z in part) for part in (inputs, tangents)]
    with torch.autocast("cpu", dtype):
        rough = evaluate(net.float(), (*halves, y), formulation)
    for one, other in zip([*rough[:2], *rough[2]], [*exact[:2], *exact[2]], strict=True):
        assert (one - other).norm() < 0.1 * other.norm()


def test_unknown_formulation_names_those_known(net, arguments):
    with pytest.raises(ValueError, match=r"unknown formulation 'fuse'.*fused.*split"):
        value_and_tangent(net, *arguments, "fuse")


def test_compiled_networks_are_differentiated_bare(net, arguments):
    """torch.compile's wrapper cannot be traced by torch.func; its bare module can."""

    class Compiled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

        def forward(self, *inputs):
            with torch.no_grad():
                return self._orig_mod(*inputs)

    _, tangent = value_and_tangent(Compiled(net), *arguments)
    assert torch.equal(tangent, value_and_tangent(net, *arguments)[1])


class Scaled(nn.Module):
    """Small, and importable by the processes below."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64).reshape(2, 1, 1))

    def forward(self, x, t, s, y):
        return torch.sin(self.weight * x * t[:, None, None, None])


def _gradient(net, rows):
    """Of a loss that uses value and tangent, over some rows of a batch of four."""
    draws = torch.Generator().manual_seed(0)
    x, dx = torch.randn(2, 4, 2, 3, 3, generator=draws, dtype=torch.float64)[:, rows]
    t = torch.rand(4, generator=draws, dtype=torch.float64)[rows]
    value, tangent = value_and_tangent(net, (x, t, t), (dx, t, t), torch.zeros_like(t).long())
    (value * tangent).mean().backward()
    return next(net.parameters()).grad


def _reduced_gradient(rank, out):
    wrapped = DistributedDataParallel(Scaled())
    with pytest.raises(ValueError, match="use fused"):
        value_and_tangent(wrapped, (), (), torch.zeros(0), "functorch")
    gradient = _gradient(wrapped, slice(2 * rank, 2 * rank + 2))
    if rank == 0:
        torch.save(gradient, out)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    """Half a batch on each of two processes equals the whole: the gradients are reduced."""
    out = tmp_path / "gradient.pt"
    in_two_processes(_reduced_gradient, out)
    expected = _gradient(Scaled(), slice(0, 4))
    torch.testing.assert_close(torch.load(out, weights_only=True), expected, rtol=1e-10, atol=1e-14)
    half = _gradient(Scaled(), slice(0, 2))
    assert float((half - expected).abs().max()) > 1e-3
