"""Divergence of a velocity field by forward tangents: div v = sum_i dv_i / dx_i.

A tangent along e gives J e, J = dv/dx. Along random signs the mean of e . (J e) is the divergence
(Hutchinson's estimate with a Rademacher probe); the sum along every unit vector is the divergence itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .heads import merged

Jvp = Callable[..., tuple[Tensor, Tensor]]


@torch.no_grad()
def divergence(
    jvp: Jvp, net: nn.Module, x: Tensor, t: Tensor, y: Tensor, probe: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Velocity F(x, t, t) of a network, (B, C, H, W), and its divergence, (B,), without a graph.

    Args:
        jvp: `core.jvp.value_and_tangent`, or a loss's ``ctx.jvp``.
        x: (B, C, H, W), t and y (B,).
        probe: directions in the shape of x, of random signs; None: exact, by C * H * W tangents.
    """
    still = torch.zeros_like(t)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, tangent = (merged(each, t, t) for each in jvp(net, (x, t, t), (direction, still, still), y))
        return value, (direction * tangent).flatten(1).sum(1)

    if probe is not None:
        return along(probe)
    value, total = torch.empty(0), torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
    for place in range(x[0].numel()):
        unit = torch.zeros_like(x).flatten(1)
        unit[:, place] = 1
        value, own = along(unit.view_as(x))
        total += own
    return value, total
