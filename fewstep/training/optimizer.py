"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..config.settings import Optimizer


def make_optimizer(options: Optimizer, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW or RAdam over those ``weights`` that ask for gradients; weight decay is decoupled in both."""
    given = {
        "params": [weight for weight in weights if weight.requires_grad],
        "lr": options.lr,
        "betas": (options.betas[0], options.betas[1]),
        "eps": options.eps,
        "weight_decay": options.weight_decay,
        "foreach": True,
    }
    if options.name == "radam":
        return torch.optim.RAdam(**given, decoupled_weight_decay=True)
    return torch.optim.AdamW(**given)


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
