"""Fully connected layers for points of the plane, given as (C, 1, 1) "images".

Given tangents, the network carries value and derivative through its layers together (dual.py).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from ..config import networks
from .conditioned import Conditioned, zero
from .dual import Carried, Linear, SiLU, add, each, swept


class Mlp(Conditioned):
    """Average velocity F(x, t, s, y): ``depth`` hidden layers, the first of which sees times and label.

    With ``target_time`` off, s is ignored; with it on, the network starts independent of s. It starts as
    F = 0. With ``outputs: 2`` the result is the pair (velocity, flow map).
    """

    carries_tangents = True

    def __init__(self, spec: networks.Mlp) -> None:
        super().__init__()
        size = prod(spec.shape)
        self.shape = tuple(spec.shape)
        self.x_embedder = Linear(size, spec.width)
        self.embed(spec, spec.width)
        hidden = [layer for _ in range(spec.depth - 1) for layer in (SiLU(), Linear(spec.width, spec.width))]
        self.trunk = nn.Sequential(*hidden, SiLU())
        self.final_layer = Linear(spec.width, size)
        self.final_layer_u = Linear(spec.width, size) if spec.outputs == 2 else None
        for head in (self.final_layer, self.final_layer_u):
            if head is not None:
                zero(head)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None,
        y: Tensor,
        tangents: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Evaluate the network, and its derivative along ``tangents`` if asked for.

        Args and result as of `lightningdit.LightningDiT.forward`, with x (B, C, H, W).
        """
        return swept(self._sweep, (x, t, s), y, tangents)

    def _sweep(self, x: Carried, t: Carried, s: Carried | None, y: Tensor, dtype: torch.dtype):
        h = add(self.x_embedder(each(lambda x: x.flatten(1), x)), self.condition(t, s, y))
        h = self.trunk(h)

        def shaped(values: Tensor) -> Tensor:
            return values.unflatten(1, self.shape).to(dtype)

        velocity = each(shaped, self.final_layer(h))
        if self.final_layer_u is None:
            return velocity
        return velocity, each(shaped, self.final_layer_u(h))
