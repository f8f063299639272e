"""Dual numbers: a tensor and its derivative along one direction, through any PyTorch network.

A network is called with duals in place of tensors and returns duals. Every operation on the way calls
``Dual.__torch_function__``: the value is computed as ever, with its graph, and the tangent by the
operation's rule in :data:`TABLE`, without a graph, because no objective here differentiates its
derivatives. Graph and memory are those of a plain forward. Wrappers, hooks, block checkpointing and
compilation see one ordinary forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from types import ModuleType
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree

from .precision import upcast

aten = torch.ops.aten
Function: TypeAlias = Callable[..., Any]


@dataclass(eq=False)
class Dual:
    """A value with its graph and a tangent of the same shape and dtype without one.

    It has the methods, operators and attributes of a tensor, but is no Tensor to ``isinstance``. A dataclass
    and a pytree node, because the hooks of DistributedDataParallel and FSDP2 look for tensors in those.
    """

    value: Tensor
    tangent: Tensor

    @classmethod
    def __torch_function__(cls, function: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Attributes of the value, and methods without a rule, which refuse."""
        if name.startswith("__"):
            raise AttributeError(name)
        if callable(getattr(Tensor, name)):
            return _method(name).__get__(self)
        attribute = getattr(self.value, name)
        return Dual(attribute, getattr(self.tangent, name)) if isinstance(attribute, Tensor) else attribute

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def shape(self) -> torch.Size:
        return self.value.shape


MaybeDual: TypeAlias = Tensor | Dual

_pytree.register_pytree_node(
    Dual,
    lambda dual: ([dual.value, dual.tangent], None),
    lambda pair, _: Dual(*pair),
    serialized_type_name="fewstep.core.dual.Dual",
)


def make_dual(value: Tensor, tangent: Tensor) -> Dual:
    """``value`` with ``tangent``, which is cut from its graph.

    Raises:
        ValueError: the shapes differ.
    """
    if value.shape != tangent.shape:
        raise ValueError(f"the tangent's shape {[*tangent.shape]} is not the value's, {[*value.shape]}")
    return Dual(value, tangent.detach().to(value.dtype))


def value_of(x: Any) -> Any:
    """The value of a dual; of a list or tuple, item by item; anything else as it is."""
    if isinstance(x, Dual):
        return x.value
    return type(x)([value_of(item) for item in x]) if type(x) in (list, tuple) else x


def tangent_of(x: MaybeDual) -> Tensor:
    """The tangent of a dual, zeros for a plain tensor."""
    return x.tangent if isinstance(x, Dual) else torch.zeros_like(x)


def apply(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``function`` of arguments with duals among them: duals, or plain values where it is constant.

    Raises:
        ValueError: the function has no rule, works in place, or would lose the graph of a value.
    """
    rule = RULES.get(function)
    graphs = torch.is_grad_enabled()
    if rule is None or (kwargs and (kwargs.get("inplace") or kwargs.get("out") is not None)):
        raise _refusal(function)
    if not graphs and any(isinstance(x, Dual) and x.value.requires_grad for x in args):
        # torch.autograd.Function passes on what is no tensor as it is, and records no graph for it.
        raise ValueError(
            f"{function.__name__} of a value with graph and tangent inside torch.no_grad, a"
            " torch.autograd.Function or reentrant checkpointing: its gradient would be lost"
        )
    values = [x.value if type(x) is Dual else value_of(x) if type(x) in (list, tuple) else x for x in args]
    value = function(*values, **{name: value_of(x) for name, x in kwargs.items()})
    torch._C._set_grad_enabled(False)  # as torch.no_grad does, in a quarter of its time
    try:
        tangent = rule(function, value, *args, **kwargs)
    finally:
        torch._C._set_grad_enabled(graphs)
    if tangent is None:
        return value
    if isinstance(value, Tensor):
        return Dual(value, tangent if tangent.dtype == value.dtype else tangent.to(value.dtype))
    return type(value)(map(Dual, value, tangent))


def _refusal(function: Function) -> ValueError:
    name = torch.overrides.resolve_name(function) or function.__name__
    last = name.rpartition(".")[2]
    if function in RULES or last.strip("_") in IN_PLACE or (last.endswith("_") and not last.endswith("__")):
        return ValueError(f"{name} would change a value in place, and not its tangent: make a new tensor")
    return ValueError(
        f"{name} has no rule for tangents: add one to TABLE in fewstep/core/dual.py, or use --tangent split"
    )


# A rule is called as rule(function, y, *args, **kwargs), without a graph, where y = function(*args, **kwargs)
# and some arguments are duals. It returns the tangent of y, one for each item where y is a sequence, or None
# where y is constant. Below, y' is the tangent of y.


def constant(_: Function, y: Any, *args: Any, **options: Any) -> None:
    """Sizes, comparisons, whole numbers, whatever is detached: y' = 0."""


def linear(function: Function, y: Any, input: Any, *rest: Any, **options: Any) -> Any:
    """Functions that are linear in their first argument, a tensor or a list of tensors."""
    if isinstance(input, list | tuple):
        return function([tangent_of(x) for x in input], *rest, **options)
    whole_numbers = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex())
    if whole_numbers or not isinstance(input, Dual):
        return None
    return function(input.tangent, *map(value_of, rest), **options)


def unary(rule: Function) -> Function:
    """Functions of one dual x, their first argument, by ``rule(x', x, y, *other arguments)``."""

    def of_first(function: Function, y: Any, input: Any, *rest: Any, **options: Any) -> Any:
        if rest or options or not isinstance(input, Dual):
            _only_first(function, input, *rest, *options.values())
        return rule(input.tangent, input.value, y, *rest, **options)

    return of_first


def _only_first(function: Function, input: Any, *rest: Any) -> None:
    if not isinstance(input, Dual) or any(isinstance(x, Dual) for x in rest):
        raise ValueError(f"{function.__name__}: only its first argument may have a tangent")


def affine(
    function: Function, y: Tensor, input: Any, weight: Tensor, bias: Any = None, *rest: Any, **options: Any
) -> Tensor:
    """Linear layers and convolutions of an input that has a tangent."""
    _only_first(function, input, weight, bias)
    return function(input.tangent, weight, None, *rest, **options)


def product(function: Function, y: Tensor, *factors: Any) -> Tensor:
    """Functions that are linear in each argument, such as matmul, and einsum after its equation."""
    values = value_of(factors)
    terms = [
        function(*values[:index], x.tangent, *values[index + 1 :])
        for index, x in enumerate(factors)
        if isinstance(x, Dual)
    ]
    return sum(terms[1:], terms[0])


def add(_: Function, y: Tensor, input: Any, other: Any, alpha: float = 1) -> Tensor:
    """y = input + alpha other."""
    if isinstance(input, Dual) and isinstance(other, Dual):
        return torch.add(input.tangent, other.tangent, alpha=alpha)
    return _as_large(input.tangent if isinstance(input, Dual) else alpha * other.tangent, y)


def _as_large(tangent: Tensor, y: Tensor) -> Tensor:
    """The tangent in the shape of its value, to which others were broadcast."""
    return tangent if tangent.shape == y.shape else tangent.expand(y.shape)


def mul(_: Function, y: Tensor, input: Any, other: Any) -> Tensor:
    if not isinstance(input, Dual):
        return input * other.tangent
    first = input.tangent * value_of(other)
    return first.addcmul_(input.value, other.tangent) if isinstance(other, Dual) else first


def addcmul(_: Function, y: Tensor, input: Any, tensor1: Any, tensor2: Any, value: float = 1) -> Tensor:
    """y = input + value tensor1 tensor2."""
    total = input.tangent if isinstance(input, Dual) else y.new_zeros(())
    if isinstance(tensor1, Dual):
        total = torch.addcmul(total, tensor1.tangent, value_of(tensor2), value=value)
    if isinstance(tensor2, Dual):
        # In place where the sum is our own.
        into = Tensor.addcmul_ if isinstance(tensor1, Dual) else torch.addcmul
        total = into(total, value_of(tensor1), tensor2.tangent, value=value)
    return _as_large(total, y)


def div(_: Function, y: Tensor, input: Any, other: Any) -> Tensor:
    if not isinstance(other, Dual):
        return input.tangent / other
    top = (
        torch.addcmul(input.tangent, y, other.tangent, value=-1)
        if isinstance(input, Dual)
        else -y * other.tangent
    )
    return top / other.value


def power(_: Function, y: Tensor, input: Any, exponent: Any) -> Tensor:
    x, n = value_of(input), value_of(exponent)
    total = n * x ** (n - 1) * input.tangent if isinstance(input, Dual) else 0
    if isinstance(exponent, Dual):
        total = total + y * torch.as_tensor(x, dtype=y.dtype).log() * exponent.tangent
    return total


def where(function: Function, y: Tensor, *args: Any) -> Tensor:
    """Of ``torch.where(condition, input, other)`` and of ``input.where(condition, other)``."""
    tensors = [x if isinstance(x, Tensor | Dual) else y.new_zeros(()) for x in args]
    return function(*(x if x.dtype == torch.bool else tangent_of(x) for x in tensors))


def view(dx: Tensor, x: Tensor, y: Tensor, *shape: Any) -> Tensor:
    if isinstance(shape[0], torch.dtype):
        raise ValueError("view as another dtype has no rule for tangents")
    # A tangent's strides may be others than its value's.
    return dx.reshape(y.shape)


def vector_norm(
    dx: Tensor, x: Tensor, y: Tensor, ord: float = 2, dim: Any = None, keepdim: bool = False
) -> Tensor:
    if ord != 2:
        raise ValueError(f"vector_norm of order {ord} has no rule for tangents")
    return ((x.conj() * dx).real.sum(dim, keepdim) / y).masked_fill_(y == 0, 0)


def _normalised(dx: Tensor, unit: Tensor, scale: Tensor, axes: list[int]) -> Tensor:
    """Tangent of ``unit = scale x`` with ``scale = rsqrt(mean of x squared + eps)``."""
    along = (unit * dx).mean(axes, keepdim=True)
    return torch.addcmul(dx, unit, along, value=-1).mul_(scale)


def layer_norm(
    dx: Tensor, x: Tensor, y: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    axes, dx = [*range(-len(shape), 0)], upcast(dx)
    unit, _, scale = torch.native_layer_norm(upcast(x), shape, None, None, eps)
    dy = _normalised(dx - dx.mean(axes, keepdim=True), unit, scale, axes)
    return dy if weight is None else dy * weight


def rms_norm(
    dx: Tensor, x: Tensor, y: Tensor, shape: Any, weight: Any = None, eps: float | None = None
) -> Tensor:
    if x.is_complex():
        raise ValueError("rms_norm of complex numbers has no rule for tangents")
    axes, wide = [*range(-len(shape), 0)], upcast(x)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    norm = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
    scale = norm.square_().div_(prod(shape)).add_(eps).rsqrt_()
    unit = y if weight is None and y.dtype == wide.dtype else wide * scale
    dy = _normalised(upcast(dx), unit, scale, axes)
    return dy if weight is None else dy * weight


def group_norm(
    dx: Tensor, x: Tensor, y: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    rows, drows = (z.reshape(len(z), groups, -1) for z in (x, dx))
    dy = layer_norm(drows, rows, y, rows.shape[2:], eps=eps).view(x.shape)
    return dy if weight is None else dy * weight.view(-1, *[1] * (x.dim() - 2))


def dropout(
    dx: Tensor, x: Tensor, y: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if (training and p) or inplace:
        raise ValueError("dropout draws random numbers, and has no tangent: set it to 0")
    return dx


SCORES = 1 << 18
"""Most attention scores of one slice on a CPU, whose caches hold them."""
MANY = 1 << 24
"""The same on other devices, where a kernel over fewer takes less time than its start, and in compiled
code, where every slice makes the code longer."""
_kernel: ModuleType | None = None
"""attention_kernel.py where it is in use."""


def use_attention_kernel(use: bool = True) -> None:
    """Whether tangents of long attention on CUDA are one Triton kernel's in this process; by default not.

    Which attention that is says ``applies`` in attention_kernel.py; a training asks for it with
    ``--attention-kernel``. The switch belongs to the process because a block that is recomputed in the
    backward must do as in the forward.

    Raises:
        ValueError: Triton is missing.
    """
    global _kernel
    _kernel = None
    if use:
        try:
            from . import attention_kernel as _kernel
        except ImportError as error:
            raise ValueError(
                f"the kernel of attention needs Triton, which comes with PyTorch for CUDA: {error}"
            ) from None


def attention(
    _: Function,
    y: Tensor,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Softmax attention of (..., heads, L, E) queries over S keys, whose L S scores are never held at once.

    With P = softmax(Z), Z = scale q k^T + mask and H = P * Z', y' = P v' + H v - rowsum(H) y.

    The value goes through PyTorch's kernel in force, which keeps no scores for the backward; the tangent is
    computed in slices of a bounded number of scores, or by the kernel of ``use_attention_kernel``.
    """
    if dropout_p or enable_gqa:
        raise ValueError("attention with dropout or with grouped queries has no rule for tangents")
    tokens, keys = y.shape[-2], value.shape[-2]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    inputs = [z for x in (query, key, value) for z in (value_of(x), tangent_of(x))]
    if _kernel and attn_mask is None and not is_causal and _kernel.applies(*inputs[::2], y):
        return _kernel.attention_tangent(*inputs, y, scale)
    most = SCORES if y.device.type == "cpu" and not torch.compiler.is_compiling() else MANY
    if is_causal:
        attn_mask = torch.ones(tokens, keys, dtype=torch.bool, device=y.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=y.dtype).masked_fill_(~attn_mask, -torch.inf)
    whole = [z.to(y.dtype) for z in (y, *inputs)]
    if attn_mask is None and y.shape[:-1].numel() * keys <= most:  # in one slice
        return attention_slice(None, scale, whole[0], *(z.flatten(0, -3) for z in whole[1:]))
    # First what is sliced by query, then what is sliced by head alone.
    whole = [torch.empty_like(y), *whole]
    whole += [] if attn_mask is None else [attn_mask.expand(*y.shape[:-1], keys)]
    whole = [z.reshape(-1, *z.shape[-3:]) for z in whole]
    heads, rows = max(1, most // (tokens * keys)), max(1, min(tokens, most // keys))
    # Slices of one sample are views, those over several samples want a copy.
    single = attn_mask is not None or heads <= whole[0].shape[1]
    found = whole[0]
    for part in zip(*whole) if single else [[z.flatten(0, 1) for z in whole]]:
        for head in range(0, len(part[0]), heads):
            out, o, q, dq, k, dk, v, dv, *mask = (z[head : head + heads] for z in part)
            for row in range(0, tokens, rows):
                cut = slice(None), slice(row, row + rows)
                added = mask[0][cut] if mask else None
                out[cut] = attention_slice(added, scale, o[cut], q[cut], dq[cut], k, dk, v, dv)
        if not single:
            found = part[0]
    return found.view(y.shape)


def attention_slice(
    mask: Any, scale: float, o: Tensor, q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor
) -> Tensor:
    """The rule of `attention` on some rows (heads, n, E) of q and dq, and all keys of these heads.

    ``o`` and what is returned may be (..., heads, n, E), with all these heads in any layout.
    """
    keys = k.mT
    H = torch.bmm(dq, keys)
    start, beta = (H, 0) if mask is None else (mask, 1)  # times 0 nothing is read
    P = torch.baddbmm(start, q, keys, beta=beta, alpha=scale).softmax(-1)
    H = torch.baddbmm(H, q, dk.mT, beta=scale, alpha=scale).mul_(P)
    tangent = torch.baddbmm(torch.bmm(P.to(v.dtype), dv), H, v).view(o.shape)
    return tangent.addcmul_(H.sum(-1, keepdim=True).view(*o.shape[:-1], 1), o, value=-1)


LINEAR = """
    neg positive sum mean cumsum cat concat stack chunk split tensor_split split_with_sizes unbind __getitem__
    select narrow index_select gather diagonal unfold fold tril triu reshape reshape_as flatten unflatten
    unsqueeze squeeze expand expand_as broadcast_to repeat repeat_interleave tile transpose permute movedim
    swapaxes roll flip contiguous clone to type_as float double half bfloat16 view_as_real real imag
    interpolate avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d pixel_shuffle pixel_unshuffle
"""
CONSTANT = """
    size dim numel stride is_contiguous is_floating_point is_complex get_device detach len bool int long eq ne
    lt le gt ge isnan isinf isfinite floor ceil round sign argmax argmin argsort any all nonzero searchsorted
    bucketize zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty
    new_full new_tensor
"""
TABLE: dict[str, Function] = {
    **dict.fromkeys(LINEAR.split(), linear),
    **dict.fromkeys(CONSTANT.split(), constant),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "conv_transpose2d"), affine),
    **dict.fromkeys(("matmul", "mm", "bmm", "einsum"), product),
    **dict.fromkeys(("add", "radd"), add),
    **dict.fromkeys(("mul", "rmul"), mul),
    **dict.fromkeys(("div", "truediv"), div),
    "sub": lambda f, y, input, other, alpha=1: add(f, y, input, other, -alpha),
    "rsub": lambda f, y, input, other, alpha=1: add(f, y, other, input, -alpha),
    "rtruediv": lambda f, y, input, other: div(f, y, other, input),
    "pow": power,
    "rpow": lambda f, y, input, other: power(f, y, other, input),
    "hypot": lambda _, y, a, b: (value_of(a) * tangent_of(a) + value_of(b) * tangent_of(b)) / y,
    "addcmul": addcmul,
    "where": where,
    "reciprocal": unary(lambda dx, x, y: -dx * y.square()),
    "square": unary(lambda dx, x, y: 2 * x * dx),
    "sqrt": unary(lambda dx, x, y: dx / (2 * y)),
    "rsqrt": unary(lambda dx, x, y: -0.5 * y**3 * dx),
    "exp": unary(lambda dx, x, y: y * dx),
    "log": unary(lambda dx, x, y: dx / x),
    "log1p": unary(lambda dx, x, y: dx / (1 + x)),
    "logit": unary(lambda dx, x, y: dx / (x * (1 - x))),
    "sin": unary(lambda dx, x, y: x.cos() * dx),
    "cos": unary(lambda dx, x, y: -x.sin() * dx),
    "erf": unary(lambda dx, x, y: 2 / torch.pi**0.5 * (-x.square()).exp() * dx),
    "abs": unary(lambda dx, x, y: (x.sgn().conj() * dx).real),
    "relu": unary(lambda dx, x, y, inplace=False: dx * (y > 0)),
    **dict.fromkeys(("clamp", "clip"), unary(lambda dx, x, y, min=None, max=None: dx * (x == y))),
    # Their Jacobians are their own transposes; of complex numbers, those of the conjugates are.
    "tanh": unary(lambda dx, x, y: aten.tanh_backward(dx, y.conj())),
    "sigmoid": unary(lambda dx, x, y: aten.sigmoid_backward(dx, y.conj())),
    "silu": unary(lambda dx, x, y, inplace=False: aten.silu_backward(dx, x.conj())),
    "gelu": unary(lambda dx, x, y, approximate="none": aten.gelu_backward(dx, x, approximate=approximate)),
    "softplus": unary(lambda dx, x, y, beta=1, threshold=20: aten.softplus_backward(dx, x, beta, threshold)),
    "softmax": unary(lambda dx, x, y, dim, **_: aten._softmax_backward_data(dx.to(y.dtype), y, dim, y.dtype)),
    "masked_fill": unary(lambda dx, x, y, mask, value: dx.masked_fill(mask, 0)),
    "pad": unary(lambda dx, x, y, pad, mode="constant", value=None: F.pad(dx, pad, mode)),
    "view": unary(view),
    "view_as": lambda f, y, input, other: linear(Tensor.reshape_as, y, input, other),
    "view_as_complex": unary(
        lambda dx, x, y: torch.view_as_complex(dx if dx.stride() == x.stride() else dx.contiguous())
    ),
    "vector_norm": unary(vector_norm),
    "layer_norm": unary(layer_norm),
    "rms_norm": unary(rms_norm),
    "group_norm": unary(group_norm),
    "dropout": unary(dropout),
    "scaled_dot_product_attention": attention,
}
"""The rule of each operation by its name in torch, where it may be a function, a method and an operator."""

OPERATORS = """
    add radd sub rsub mul rmul truediv rtruediv pow rpow matmul neg abs lt le gt ge eq ne bool len
"""
IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ipow", "setitem")

RULES: dict[Function, Function] = {
    getattr(place, name): rule
    for name, rule in TABLE.items()
    for place in (Tensor, torch, F, torch.linalg)
    if callable(getattr(place, name, None))
} | {getattr(Tensor, f"__{name}__"): TABLE[name] for name in OPERATORS.split()}
"""The same by function."""


def _method(name: str) -> Function:
    def call(self: Dual, *args: Any, **kwargs: Any) -> Any:
        # By its name: torch.compile does not find a function of this closure in RULES, and that of torch 2.11
        # does not trace Tensor.unflatten.
        return apply(getattr(torch if name == "unflatten" else Tensor, name), (self, *args), kwargs)

    return call


for _name in (*TABLE, *(f"__{name}__" for name in (*OPERATORS.split(), *IN_PLACE))):
    if callable(getattr(Tensor, _name, None)):
        setattr(Dual, _name, _method(_name))
