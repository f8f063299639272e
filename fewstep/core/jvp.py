"""Value of the network and its derivative along a direction: the only file that knows torch.func.

Every continuous-time objective here needs F and dF = JVP(F; (x, t, s); (dx, dt, ds)), and uses dF behind a
stop-gradient. A formulation returns F with its graph and dF without one. A new formulation is a function with
the signature of :data:`Formulation` and an entry in :data:`FORMULATIONS`.

The tangents are best given multiplied by the interval s - t that the objective multiplies dF by:
the derivative is linear in them, and the product is what rounding in bf16 should see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from .dual import make_dual, tangent_of, value_of
from .heads import Output
from .precision import upcast
from .wrappers import unwrap

Triple = tuple[Tensor, Tensor, Tensor]
Formulation = Callable[[nn.Module, Triple, Triple, Tensor], tuple[Output, Output]]

STEP = 5e-3
"""Half width of the central difference, a compromise for float32: truncation falls with its square,
rounding grows with its inverse."""


def value_and_tangent(
    net: nn.Module, inputs: Triple, tangents: Triple, y: Tensor, formulation: str = "fused"
) -> tuple[Output, Output]:
    """F(x, t, s, y) with its graph, and its derivative along ``tangents`` without one.

    Args:
        net: the network, wrapped or not, called as ``net(x, t, s, y)``.
        inputs: x (B, C, H, W), t (B,), s (B,).
        tangents: dx, dt, ds, of the same shapes and dtypes.
        y: labels (B,).
        formulation: a key of :data:`FORMULATIONS`.

    Returns:
        Value and derivative in the shape of x; of a network with two outputs, a pair of each.

    Raises:
        ValueError: unknown formulation, or ``functorch`` on a DistributedDataParallel network.
    """
    if formulation not in FORMULATIONS:
        raise ValueError(f"unknown formulation {formulation!r} of the tangent; known: {sorted(FORMULATIONS)}")
    return FORMULATIONS[formulation](net, inputs, tangents, y)


def forward_with_jvp(net: nn.Module, inputs: Triple, tangents: Triple, y: Tensor) -> tuple[Output, Output]:
    """One forward of the wrapped network on dual numbers, an ordinary forward to every wrapper and hook.

    Raises:
        ValueError: an operation of the network without a rule for tangents (dual.py).
    """
    output = net(*map(make_dual, inputs, tangents), y)
    return value_of(output), _each(tangent_of, output)


def _functorch(net: nn.Module, inputs: Triple, tangents: Triple, y: Tensor) -> tuple[Output, Output]:
    """One forward-over-reverse pass; the reference. It records the graph of the tangent in vain."""
    if isinstance(net, DistributedDataParallel):
        # The bare module's hooks would never reduce the gradients, and nothing would tell.
        raise ValueError("formulation functorch bypasses DistributedDataParallel; use fused")
    value, tangent = _jvp(unwrap(net), inputs, tangents, y)
    return value, _each(Tensor.detach, tangent)


def _split(net: nn.Module, inputs: Triple, tangents: Triple, y: Tensor) -> tuple[Output, Output]:
    """Tangent of the bare module without a graph, then an ordinary forward of the wrapped one.

    A third of the memory of ``functorch``, fused attention in the forward, and the wrapper's
    hooks see the pass whose gradients they must reduce.
    """
    with torch.no_grad():
        _, tangent = _jvp(unwrap(net), inputs, tangents, y)
    return net(*inputs, y), tangent


def central_difference(
    net: nn.Module, inputs: Triple, tangents: Triple, y: Tensor, step: float = STEP
) -> tuple[Output, Output]:
    """(F(z + h dz) - F(z - h dz)) / 2h without a graph, then an ordinary forward; no forward mode.

    For float32 and above: in bf16 the difference drowns in rounding. Times may leave [0, 1] by h.
    """
    bare = unwrap(net)
    moved = list(zip(inputs, tangents, strict=True))
    with torch.no_grad():
        ahead = bare(*(z + step * dz for z, dz in moved), y)
        behind = bare(*(z - step * dz for z, dz in moved), y)
    return net(*inputs, y), _each(lambda a, b: (a - b) / (2 * step), ahead, behind)


def _jvp(bare: nn.Module, inputs: Triple, tangents: Triple, y: Tensor) -> tuple[Output, Output]:
    # Fused attention has no forward-mode rule; nn.MultiheadAttention calls it where the mode does not see it.
    with sdpa_kernel(SDPBackend.MATH), _ForwardMode():
        value, tangent = torch.func.jvp(lambda x, t, s: bare(x, t, s, y), inputs, tangents)
    return value, tangent


class _ForwardMode(TorchFunctionMode):
    """Operations in a form that forward mode and the backward after it can differentiate."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RuntimeError:
            if function is not F.group_norm:
                raise
            # Forward mode of torch 2.11 refuses what is not contiguous.
            return function(args[0].contiguous(), *args[1:], **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` written out, with a softmax in float32.

    Under autocast on CUDA, forward mode computes PyTorch's own in another dtype than its backward expects.
    """
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = upcast((query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT)
    if is_causal:
        attn_mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.dropout(scores.softmax(-1), dropout_p, dropout_p > 0).to(value.dtype) @ value


def _each(function: Callable[..., Tensor], *outputs: Output) -> Output:
    """Apply to one output, or to the first ones and to the second ones."""
    if not isinstance(outputs[0], tuple):
        return function(*outputs)
    first, second = (function(*parts) for parts in zip(*outputs, strict=True))
    return first, second


FORMULATIONS: dict[str, Formulation] = {
    "fused": forward_with_jvp,
    "split": _split,
    "functorch": _functorch,
    "central": central_difference,
}
