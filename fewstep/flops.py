"""What a training step costs: floating-point operations, counted, not timed.

A method's price depends on its passes, not on the machine: this counts the products of matrices,
convolutions and attention of every forward and backward, teacher and tangents included, at two operations
for a multiplication with its addition. Element-wise work, the optimizer and the averages are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .core.method import Batch, Context, Loss, Method, loss_parts

PERIOD = 120
"""Steps looked at for updates that not every step has; a multiple of the usual frequencies."""


class Flops(TorchDispatchMode):
    """Within this context, operations are counted in ``total``, but for those of recomputed blocks."""

    paused = False

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rule = flop_registry.get(func._overloadpacket)
        if rule is not None and not self.paused:
            self.total += rule(*args, **(kwargs or {}), out_val=result)
        return result


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's forward and of its recomputation, which is the price of memory."""
    return nullcontext(), _pause()


@contextmanager
def _pause() -> Iterator[None]:
    Flops.paused = True
    try:
        yield
    finally:
        Flops.paused = False


def per_step(
    method: Method,
    net: nn.Module,
    slices: Callable[[int], list[tuple[Batch, Context]]],
    steps: int,
    clear: Callable[[], None],
) -> float:
    """Operations of a training step over the rows of ``slices``, the average where steps differ.

    Steps that have the same updates are taken to cost the same: the first of each kind is run, forward
    and backward, and its gradients are dropped. Nothing else is changed, so that training goes on as if
    nothing had been counted.

    Args:
        slices: batches and contexts of a step, as its updates share them.
        steps: length of the training.
        clear: drops the gradients.
    """
    kinds: Counter[tuple[str, ...]] = Counter()
    first: dict[tuple[str, ...], int] = {}
    for step in range(min(steps, PERIOD)):
        kind = tuple(_name(loss) for loss in method.updates(step))
        kinds[kind] += 1
        first.setdefault(kind, step)
    counted = {kind: _count(method, net, slices(step), step, clear) for kind, step in first.items()}
    return sum(counted[kind] * times for kind, times in kinds.items()) / kinds.total()


def _name(loss: Loss) -> str:
    return getattr(loss, "__qualname__", repr(loss))


def _count(
    method: Method,
    net: nn.Module,
    slices: list[tuple[Batch, Context]],
    step: int,
    clear: Callable[[], None],
) -> int:
    # Compiled blocks would hide their products from the count; uncompiled they are the same.
    with torch.compiler.set_stance("force_eager"), Flops() as flops:
        for part in (part for loss in method.updates(step) for part in loss_parts(loss)):
            for batch, context in slices:
                value: Tensor = part(net, batch, context).loss
                value.backward()
    clear()
    return flops.total
