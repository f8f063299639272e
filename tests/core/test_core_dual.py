"""The table of tangent rules against torch.func.jvp of the same operations, and what duals refuse."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree
from torch.utils.checkpoint import checkpoint

from fewstep.bench.meters import peak_bytes
from fewstep.core import dual
from fewstep.core.dual import Dual, make_dual


def reference(function, values, tangents):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(function, tuple(values), tuple(tangents))[1]


def random(*shapes, dtype=torch.float64, seed=5):
    """Values and tangents of these shapes."""
    draws = torch.Generator().manual_seed(seed)
    return zip(*(torch.randn(2, *shape, generator=draws, dtype=dtype) for shape in shapes))


def check(function, *shapes, positive=False, dtype=torch.float64):
    """``function`` on duals of random values: the value of plain tensors, the tangent of the reference."""
    values, tangents = random(*shapes, dtype=dtype)
    if positive:
        values = [value.abs() / 4 + 0.1 for value in values]
    found = function(*map(Dual, values, tangents))
    plain, expected = function(*values), reference(function, values, tangents)
    assert isinstance(found, Dual) == isinstance(plain, torch.Tensor)
    parts = (
        [(found, plain, expected)] if isinstance(found, Dual) else zip(found, plain, expected, strict=True)
    )
    for one, value, tangent in parts:
        assert torch.equal(one.value, value) and one.tangent.dtype == value.dtype
        assert tangent.abs().max() > 1e-3
        torch.testing.assert_close(one.tangent, tangent, rtol=1e-12, atol=1e-12)


A, B, C = (2, 3, 4), (3, 4), (4,)
WEIGHT = torch.randn(5, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
CONVOLUTION = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
IMAGE = (2, 4, 6, 6)

NUMBERS = """
    reciprocal square sqrt rsqrt exp log log1p logit sin cos erf abs tanh sigmoid relu neg silu gelu softplus
"""


@pytest.mark.parametrize("name", NUMBERS.split())
def test_functions_of_a_number(name):
    function = getattr(torch, name, None) or getattr(F, name)
    check(function, A, positive=True)
    if name not in ("sqrt", "rsqrt", "log", "log1p", "logit"):
        check(function, A)


COMPLEX = """
    reciprocal square sqrt rsqrt exp log log1p sin cos abs tanh sigmoid neg silu real imag
    view_as_real sum mean
"""


@pytest.mark.parametrize("name", COMPLEX.split())
def test_functions_of_a_complex_number(name):
    check(getattr(torch, name, None) or getattr(F, name), A, dtype=torch.complex128)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic_of_complex_numbers(name):
    """Of two, and of a real and a complex one, as where queries are rotated; broadcast."""
    function, wide = getattr(torch, name), torch.complex128
    check(function, A, B, dtype=wide)
    check(lambda x, y: function(x.real, y), A, C, dtype=wide)
    check(lambda x, y: function(x, y.imag), B, A, dtype=wide)
    turn = torch.polar(torch.ones(B), torch.rand(B))
    check(lambda x: function(x, turn), A)
    check(lambda x: function(turn, x), A, positive=True)


def test_products_and_shapes_of_complex_numbers():
    for function, *shapes in (
        (torch.matmul, A, (4, 5)),
        (lambda x: torch.linalg.vector_norm(x, dim=-1), A),
        (lambda x: x**3 + torch.where(x.real.detach() > 0, x, 0.0).masked_fill(x.detach() == 0, 1), A),
        (lambda x: torch.cat([x.real, x]).cumsum(0)[1:].unflatten(-1, (2, 2)).to(torch.complex64), A),
    ):
        check(function, *shapes, dtype=torch.complex128)


def test_powers():
    check(lambda x: x**3, A)
    check(lambda x: 2.5**x, A)
    check(lambda x, n: x**n, A, A, positive=True)
    check(torch.hypot, A, A)
    check(lambda n: torch.full(A, 1.5, dtype=torch.float64) ** n, A)


@pytest.mark.parametrize("shapes", [(A, A), (A, B), (B, A), (C, A)], ids=str)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic_of_two(name, shapes):
    """Both with a tangent, or one of them; broadcast; as functions, methods and operators."""
    function = getattr(torch, name)
    check(function, *shapes, positive=True)
    plain = torch.rand(shapes[1], dtype=torch.float64) + 0.5
    check(lambda x: function(x, plain), shapes[0])
    check(lambda x: function(plain, x), shapes[0], positive=True)
    check(lambda x: getattr(plain, name)(x), shapes[0], positive=True)
    check(lambda x: getattr(x, name)(0.5), shapes[0])


def test_operators():
    check(lambda x, y: (2 - x) * (1 + y) / (3 / x) - (x - 1) / 2 + 3 * -y, A, B, positive=True)
    check(lambda x: torch.add(x, x, alpha=3) - torch.sub(1.0 * x, x.square(), alpha=2), A)
    check(lambda x: sum([x, x]), A)


@pytest.mark.parametrize("which", ["abc", "ab", "bc", "a", "b", "c", "ac"])
def test_addcmul(which):
    given = dict(zip("abc", ((2, 1, 4), A, (2, 1, 4))))
    plain = {key: torch.rand(shape, dtype=torch.float64) for key, shape in given.items()}

    def function(*args):
        return torch.addcmul(*(plain | dict(zip(which, args))).values(), value=2)

    check(function, *(given[key] for key in which))


def test_products_of_matrices():
    check(torch.matmul, A, (4, 5))
    check(lambda x: x @ WEIGHT.mT, A)
    check(lambda x: WEIGHT @ x.mT, A)
    check(torch.bmm, A, (2, 4, 5))
    check(lambda x, y: torch.einsum("bij,jk->bik", x, y), A, (4, 5))
    check(lambda x: torch.einsum("bij,kj->bik", x, WEIGHT), A)


def test_layers_with_weights():
    check(lambda x: F.linear(x, WEIGHT, WEIGHT[:, 0]), A)
    check(lambda x: F.conv2d(x, CONVOLUTION, CONVOLUTION[:, 0, 0, 0], stride=2, padding=1), IMAGE)
    check(lambda x: F.conv_transpose2d(x, CONVOLUTION.transpose(0, 1), None, stride=2), IMAGE)


@pytest.mark.parametrize("gain", [False, True])
def test_norms(gain):
    weight, bias = (WEIGHT[0], WEIGHT[1]) if gain else (None, None)
    check(lambda x: F.layer_norm(x, (4,), weight, bias, 1e-3), A)
    check(lambda x: F.layer_norm(x, (3, 4)), A)
    check(lambda x: F.rms_norm(x, (4,), weight, 1e-3), A)
    check(lambda x: F.rms_norm(x, (3, 4)), A)
    check(lambda x: F.group_norm(x, 2, weight, bias, 1e-3), IMAGE)
    check(lambda x: F.group_norm(x, 2, weight, bias), (3, 4))
    check(lambda x: torch.linalg.vector_norm(x, dim=-1), A)


def test_the_norm_of_zero_has_no_slope():
    zero = Dual(torch.zeros(2, 3), torch.ones(2, 3))
    assert not torch.linalg.vector_norm(zero, dim=-1).tangent.any()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.view(2, 12).reshape(4, 6).flatten().unflatten(0, (2, 3, 4)),
        lambda x: x.transpose(0, 1).reshape(-1).view_as(x),
        lambda x: x[:, 1:, [0, 2]].unsqueeze(1).squeeze(1).expand(2, 2, 2),
        lambda x: x.permute(2, 0, 1).contiguous().mT,
        lambda x: torch.cat([x, torch.ones(2, 3, 4), x], dim=1) + torch.stack([x] * 9, 1).sum(2).mean(),
        lambda x: x.chunk(2, dim=-1),
        lambda x: x.unbind(1),
        lambda x: torch.split(x, [1, 3], dim=-1),
        lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2))) * torch.tensor(1 + 2j)),
        lambda x: torch.view_as_real(
            torch.view_as_complex(torch.ones(4, 2, dtype=x.dtype) + x[0, 0, :, None])
        ),
        lambda x: F.interpolate(x[None], scale_factor=2.0, mode="nearest"),
        lambda x: F.avg_pool2d(F.pad(x, (1, 1, 0, 0), value=3.0), 2),
        lambda x: torch.where(x > 0, x, 0.0) + x.where(x > 0, 2 * x) + x.masked_fill(x > 1, 7.0),
        lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0) + torch.clip(x, max=0.2) + x.clip(-2, 1),
        lambda x: x[0].clip(torch.full(A, -0.5), torch.ones(4)).float() + x[:, :1].clip(torch.zeros(A)),
        lambda x: x.softmax(-1) + F.softmax(x, dim=1) + torch.softmax(x, 0),
        lambda x: x * (x > 0) + x.detach() * x + torch.zeros_like(x) + x.size(1) * x + x.floor(),
        lambda x: F.dropout(x, 0.5, training=False) + F.dropout(x, 0.0),
        lambda x: x.float().double() + x.to(torch.float64) + x.type_as(x),
    ],
)
def test_shapes_and_the_rest(function):
    check(function, A)


def test_what_is_constant_is_plain():
    x = Dual(torch.randn(3), torch.randn(3))
    for constant in (x.detach(), x > 0, torch.argmax(x), x.long(), torch.zeros_like(x), torch.eq(x, x)):
        assert type(constant) is torch.Tensor
    assert x.shape == (3,) and x.dim() == 1 and len(x) == 3 and x.dtype == torch.float32
    assert x.device.type == "cpu" and x.numel() == 3 and x.ndim == 1 and not hasattr(x, "nothing")


def attend(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


@pytest.mark.parametrize("scores", [1, 2 * 3 * 16, 10**6], ids=["row by row", "uneven slices", "at once"])
def test_attention_in_slices(scores, monkeypatch):
    monkeypatch.setattr(dual, "SCORES", scores)
    check(attend, *[(5, 3, 4, 6)] * 3)
    check(attend, *[(3, 4, 6)] * 3)
    check(attend, (5, 3, 4, 6), (5, 3, 7, 6), (5, 3, 7, 2))
    check(lambda q, k, v: attend(q, k, v, is_causal=True, scale=0.3), *[(5, 3, 4, 6)] * 3)
    mask = torch.randn(5, 1, 4, 7, dtype=torch.float64)
    for one in (mask, mask > -1, mask[0, 0] > -1):
        check(lambda q, k, v, one=one: attend(q, k, v, attn_mask=one), (5, 3, 4, 6), *[(5, 3, 7, 6)] * 2)


def test_attention_where_only_some_have_tangents():
    q, k, v = torch.randn(3, 5, 3, 4, 6, dtype=torch.float64)
    check(lambda q: attend(q, k, v), q.shape)
    check(lambda k, v: attend(q, k, v), q.shape, q.shape)


def test_attention_of_many_tokens_holds_no_square():
    """Neither for the backward nor for the tangent; one square of all heads would be 32 MiB here."""
    tokens = 1024
    values, tangents = torch.randn(2, 3, 1, 8, tokens, 8, generator=torch.Generator().manual_seed(7))
    saved = []

    def sweep():
        q, k, v = (value.clone().requires_grad_() for value in values)
        with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z.numel()) or z, lambda z: z):
            return attend(*map(Dual, (q, k, v), tangents))

    sweep()
    assert max(saved) < tokens**2 / 10
    assert peak_bytes(sweep) < 8 * 2**20


def test_every_name_of_the_table_is_one_of_torch():
    """A misspelt one would have no function."""
    for name, rule in dual.TABLE.items():
        places = (torch.Tensor, torch, F, torch.linalg)
        found = [getattr(place, each, None) for each in (name, f"__{name}__") for place in places]
        assert any(dual.RULES.get(function) is rule for function in found if callable(function)), name


X = Dual(torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: torch.cumprod(X, 0), r"torch.cumprod has no rule .* TABLE in fewstep/core/dual.py"),
        (lambda: X.cumprod(0), r"torch.Tensor.cumprod has no rule"),
        (lambda: float(X.sum().item()), r"torch.Tensor.item has no rule"),
        (lambda: torch.linalg.vector_norm(X, 1), "order 1 has no rule"),
        (lambda: F.dropout(X, 0.5), "dropout draws random numbers"),
        (lambda: F.rms_norm(X * 1j, (4,)), "rms_norm of complex numbers has no rule"),
        (lambda: torch.polar(X, X), r"torch.polar has no rule .* TABLE in fewstep/core/dual.py"),
        (lambda: attend(X[None], X[None], X[None], dropout_p=0.5), "attention with dropout"),
        (lambda: X.view(torch.int32), "another dtype has no rule"),
        (lambda: F.linear(torch.ones(4), X), "only its first argument"),
        (lambda: torch.clamp(torch.ones(3, 4), max=X), "only its first argument"),
        (lambda: X.clamp(max=X), "only its first argument"),
        (lambda: X.add_(1), r"torch.Tensor.add_ would change a value in place"),
        (lambda: X.__iadd__(1), r"__iadd__ would change a value in place"),
        (lambda: torch.ones(3, 4).mul_(X), r"mul_ would change a value in place"),
        (lambda: X.__setitem__(0, 1.0), "__setitem__ would change a value in place"),
        (lambda: torch.ones(3, 4).__setitem__(0, X[0]), "__setitem__ would change a value in place"),
        (lambda: F.silu(X, inplace=True), "silu would change a value in place"),
        (lambda: torch.add(X, 1, out=torch.ones(3, 4)), "add would change a value in place"),
        (lambda: make_dual(torch.ones(3), torch.ones(2)), r"tangent's shape \[2\] is not the value's, \[3\]"),
    ],
)
def test_refusals(call, words):
    before = X.value.clone()
    with pytest.raises(ValueError, match=words):
        call()
    assert torch.equal(X.value, before)


def test_a_rule_can_be_added(monkeypatch):
    rule = dual.unary(lambda dx, x, y: x.cosh() * dx)
    monkeypatch.setitem(dual.RULES, torch.sinh, rule)
    check(torch.sinh, A)


def test_wrappers_find_the_tensors():
    """DistributedDataParallel looks into dataclasses, FSDP2 into pytrees."""
    assert [field.name for field in dataclasses.fields(Dual)] == ["value", "tangent"]
    doubled = _pytree.tree_map(lambda z: 2 * z, {"x": [X]})["x"][0]
    assert torch.equal(doubled.value, 2 * X.value) and torch.equal(doubled.tangent, 2 * X.tangent)


def test_no_graph_through_a_tangent():
    weight = torch.randn(4, 4, requires_grad=True)
    x = make_dual(torch.randn(3, 4), torch.randn(3, 4, requires_grad=True))
    y = F.silu(F.linear(x, weight)) * (x @ weight) + weight[0]
    assert y.value.requires_grad and not y.tangent.requires_grad


def test_what_would_lose_the_graph_is_refused():
    """torch.autograd.Function takes a dual for no tensor, and gives a value without a graph."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError

    x = Dual(torch.randn(3, requires_grad=True), torch.randn(3))
    for call in (Square.apply, partial(checkpoint, torch.square, use_reentrant=True)):
        with pytest.raises(ValueError, match="gradient would be lost"):
            call(x)
    assert checkpoint(torch.square, x, use_reentrant=False).value.requires_grad
    with torch.no_grad():
        assert not torch.square(Dual(x.value.detach(), x.tangent)).value.requires_grad


def test_half_precision_stays():
    x = Dual(torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16())
    for y in (F.layer_norm(x, (4,)), F.rms_norm(x, (4,)), F.silu(x) * x, x + torch.ones(4), x.clip(-1, 1)):
        assert y.tangent.dtype == y.value.dtype
