"""Floating-point operations of a training step, counted, not timed.

Counted are the products of matrices, convolutions and attention of every forward and backward pass,
teacher and tangents included, at two operations for a multiplication with its addition. Element-wise
work, the optimizer and the moving averages are left out.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .method import Batch, Context, Method, at_rest, kind_of_step, loss_parts, second_order
from .wrappers import gathered, resting


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Two products: scores, and scores times values. Inputs are (B, heads, tokens, channels)."""
    return int(2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    """Five products: the scores anew, and the gradients of scores, query, key and value."""
    return int(2 * query.shape[:-1].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1]))


def matrix_vector(matrix: Tensor, vector: Tensor, **_: Any) -> int:
    """A matrix (or a vector) times a vector."""
    return int(2 * matrix.numel())


def product(a: Tensor, b: Tensor, **_: Any) -> int:
    """A matrix, or several, times a matrix."""
    return int(2 * a.numel() * b.shape[-1])


_OURS = {
    "mv": matrix_vector,
    "dot": matrix_vector,
    "vdot": matrix_vector,
    "addmv": lambda _, matrix, vector, **__: matrix_vector(matrix, vector),
    "addbmm": lambda _, a, b, **__: product(a, b),
    "_addmm_activation": lambda _, a, b, **__: product(a, b),
    "_int_mm": product,
    "_scaled_dot_product_flash_attention_for_cpu": attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    "_scaled_dot_product_fused_attention_overrideable": attention,
    "_scaled_dot_product_fused_attention_overrideable_backward": attention_backward,
    "_scaled_dot_product_attention_math_for_mps": attention,
}
"""Rules for operators that some releases of torch do not count."""
# Ours come first, so that a later release with another rule does not change a count. Operators that are
# registered later, as that of attention_kernel.py, count too.
_RULES = ChainMap({getattr(torch.ops.aten, name): rule for name, rule in _OURS.items()}, flop_registry)
_ATTENTION = ("attention", "attn", "sdpa")


class OperationCounter(TorchDispatchMode):
    """Within this context, operations are counted in ``total``.

    Args:
        recomputed: count the second forward pass of checkpointed blocks too.

    Raises:
        NotImplementedError: an attention operator without a rule; it would count as nothing.
    """

    recomputing = False

    def __init__(self, recomputed: bool = False) -> None:
        super().__init__()
        self.total: int = 0
        self._recomputed = recomputed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rule = _RULES.get(func._overloadpacket)
        if rule is None and func is not torch.ops.prim.device.default:
            # Inference mode hands over composite operators (linear, matmul) whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            if any(word in func.name() for word in _ATTENTION):
                raise NotImplementedError(f"{func}: no rule counts its operations; add one to {__name__}")
        result = func(*args, **kwargs)
        if rule is not None and (self._recomputed or not OperationCounter.recomputing):
            self.total += rule(*args, **kwargs, out_val=result)
        return result


def recompute_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's forward and of its recomputation, for ``torch.utils.checkpoint``."""
    return nullcontext(), _Recomputing()


class _Recomputing:
    """Marks a recomputation. A second derivative enters it again, as no @contextmanager can be."""

    def __enter__(self) -> None:
        OperationCounter.recomputing = True

    def __exit__(self, *_: object) -> None:
        OperationCounter.recomputing = False


def per_step(
    method: Method,
    net: nn.Module,
    slices: Callable[[int], list[tuple[Batch, Context]]],
    steps: int,
    clear: Callable[[], None],
) -> float:
    """Operations of a training step over the rows of ``slices``, the average where steps differ.

    Steps with the same updates cost the same: the first of each kind is run, forward and backward, and its
    gradients are dropped. Weights and random numbers stay as they are.

    Args:
        slices: batches and contexts of a step, as its updates share them.
        steps: length of the training.
        clear: drops the gradients.
    """
    counted: dict[tuple[str, ...], int] = {}
    total = 0
    for step in range(steps):
        updates = method.updates(step)
        kind = kind_of_step(updates)
        if kind not in counted:
            rows = slices(step)
            # Compiled blocks would hide their products from the count.
            with torch.compiler.set_stance("force_eager"), OperationCounter() as counter:
                for update in updates:
                    keep = [net, *rows[0][1].players.values()] if second_order(update) else ()
                    with resting(at_rest(update, net, rows[0][1])), gathered(keep):
                        for part in loss_parts(update):
                            for batch, context in rows:
                                part(net, batch, context).loss.backward()
            clear()
            counted[kind] = counter.total
        total += counted[kind]
    return total / steps
