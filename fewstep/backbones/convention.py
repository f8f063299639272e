"""Turning published weights into ours: one path from noise to data, as many outputs as inputs.

Each conversion is an exact change of a few linear layers, so that nothing of it is left at run time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.settings import LightningDiT

HEADS = ("final_layer", "final_layer_u")


def ours(
    tensors: dict[str, Tensor], backbone: LightningDiT, reverse: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for our convention, and in words what was done to them.

    Channels of a learned variance (DiT, SiT: ``learn_sigma``), which samplers of flows do not use,
    are recognised by twice as many outputs and dropped. ``reverse``: the published network has its
    noise at t = 1 and predicts noise - data.
    """
    tensors, done = dict(tensors), []
    if _drop_variance(tensors, backbone):
        done.append("outputs of a learned variance dropped")
    if reverse:
        _reverse(tensors, backbone)
        done.append("time and velocity reversed")
    return tensors, done


def _drop_variance(tensors: dict[str, Tensor], backbone: LightningDiT) -> bool:
    """Keep the first C of 2C channels; the outputs of a patch are channels last."""
    channels = backbone.shape[0]
    twice = 2 * channels * backbone.patch**2
    found = False
    for name in (f"{head}.linear.{part}" for head in HEADS for part in ("weight", "bias")):
        value = tensors.get(name)
        if value is not None and value.ndim and len(value) == twice:
            tensors[name] = value.unflatten(0, (-1, 2 * channels))[:, :channels].flatten(0, 1).contiguous()
            found = True
    return found


def _reverse(tensors: dict[str, Tensor], backbone: LightningDiT) -> None:
    """Negate the outputs, and give the times' first layers weights that expect 1 - t.

    With angular frequency w: cos w(1 - t) = cos w cos wt + sin w sin wt, and
    sin w(1 - t) = sin w cos wt - cos w sin wt.
    """
    half = backbone.time_features // 2
    j = torch.arange(half, dtype=torch.float64)
    w = backbone.time_scale * backbone.time_period ** (-j / half)
    for name in ("t_embedder.mlp.0.weight", "r_embedder.mlp.0.weight"):
        value = tensors.get(name)
        if value is not None and value.ndim == 2 and value.shape[1] == 2 * half:
            cos, sin = value.double().chunk(2, dim=1)
            turned = torch.cat([cos * w.cos() + sin * w.sin(), cos * w.sin() - sin * w.cos()], dim=1)
            tensors[name] = turned.to(value.dtype)
    for name in (f"{head}.linear.{part}" for head in HEADS for part in ("weight", "bias")):
        if name in tensors:
            tensors[name] = -tensors[name]
