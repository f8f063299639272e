"""What tests of tangents through a network ask: value, tangent, gradient, and what the graph keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.jvp import value_and_tangent

Given = tuple[Tensor, Tensor, Tensor, Tensor]
"""x, t, s, y."""


def trained(net: nn.Module) -> list[Tensor]:
    return [weight for weight in net.parameters() if weight.requires_grad]


def relative(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """Distance of all tensors together, relative to their norm."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(ours, theirs, strict=True)]
    assert all(a.isfinite().all() and a.shape == b.shape for a, b in pairs)
    difference, norm = (
        sum(float(z.square().sum()) for z in each)
        for each in zip(*((a.double() - b.double(), b.double()) for a, b in pairs))
    )
    return (difference / norm) ** 0.5


def evaluate(
    net: nn.Module, given: Given, formulation: str, rows: slice = slice(None), autocast: bool = False
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Value, tangent along random directions, and gradients of a loss of both, over some of the rows."""
    draws = torch.Generator().manual_seed(6)
    x, t, s, y = given
    direction = [torch.randn(z.shape, generator=draws, dtype=torch.float64).to(z.dtype) for z in (x, t, s)]
    part = (x[rows], t[rows], s[rows]), tuple(z[rows] for z in direction), y[rows]
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        value, tangent = value_and_tangent(net, *part, formulation)
    loss = (value.float() if autocast else value).square().mean() + (value * tangent).mean()
    loss.backward()
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in trained(net)]
    net.zero_grad()
    return value, tangent, gradients


def saved_sizes(call: Callable[[], Any]) -> list[int]:
    """How many numbers each tensor has that ``call`` saves for its backward pass."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: sizes.append(z.numel()) or z, lambda z: z):
        call()
    return sizes
