"""Fully connected layers for points of the plane, given as (C, 1, 1) "images"."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from ..config import backbones as specs
from .layers import Conditioned, ScalarHead, zero


class Mlp(Conditioned):
    """Average velocity F(x, t, s, y): ``depth`` hidden layers, the first of which sees times and label.

    With ``target_time`` off, s is ignored; with it on, the network starts independent of s. It starts as
    F = 0. With ``outputs: 2`` the result is the pair (velocity, flow map), with ``scalar``
    F and one number for each sample, (B,).
    """

    def __init__(self, spec: specs.Mlp) -> None:
        super().__init__()
        size = prod(spec.shape)
        self.x_embedder = nn.Linear(size, spec.width)
        self.embed(spec, spec.width, spec.conditional)
        hidden: list[nn.Module] = []
        for _ in range(spec.depth - 1):
            hidden += [nn.SiLU(), nn.Linear(spec.width, spec.width)]
        self.trunk = nn.Sequential(*hidden, nn.SiLU())
        self.final_layer = nn.Linear(spec.width, size)
        self.final_layer_u = nn.Linear(spec.width, size) if spec.outputs == 2 else None
        zero(self.final_layer, self.final_layer_u)
        self.scalar_head = ScalarHead(spec.width) if spec.scalar else None

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled, recomputed and sharded."""
        return [self.trunk]

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate the network; arguments and result as of `lightningdit.LightningDiT.forward`."""
        h = self.trunk(self.x_embedder(x.flatten(1)) + self.condition(t, s, y))
        velocity = self.final_layer(h).unflatten(1, self.shape).to(x.dtype)
        if self.scalar_head is not None:
            return velocity, self.scalar_head(h).to(x.dtype)
        if self.final_layer_u is None:
            return velocity
        return velocity, self.final_layer_u(h).unflatten(1, self.shape).to(x.dtype)
