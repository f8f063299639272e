"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..config.settings import Optimizer


def make_optimizer(options: Optimizer, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW or RAdam over those ``weights`` that ask for gradients; weight decay is decoupled in both.

    AdamW never waits for the device: its learning rate is a tensor, and `step_if` skips
    an update there.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    given: dict[str, Any] = {
        "betas": (options.betas[0], options.betas[1]),
        "eps": options.eps,
        "weight_decay": options.weight_decay,
    }
    if options.name == "radam":
        return torch.optim.RAdam(trained, options.lr, **given, foreach=True, decoupled_weight_decay=True)
    device = trained[0].device
    rate = torch.tensor(options.lr, dtype=torch.float32, device=device)
    return torch.optim.AdamW(trained, rate, **given, fused=True, capturable=device.type == "cuda")


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For the next updates."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One update, or none at all where ``finite`` (), bool, is false.

    A fused optimizer decides on the device, as it does for a loss scaler; any other waits for the answer.
    """
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif bool(finite):
        optimizer.step()


def learning_rate(options: Optimizer, step: int, steps: int) -> float:
    """Linear warm-up, then constant, or cosine to ``final_lr_ratio`` times the first rate."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.decay == "constant":
        return options.lr
    done = (step - options.warmup) / max(1, steps - options.warmup)
    return options.lr * (
        options.final_lr_ratio + (1 - options.final_lr_ratio) * (1 + math.cos(math.pi * done)) / 2
    )
