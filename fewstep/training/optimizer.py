"""The optimizers, which never wait for the device, and their learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..config.settings import Optimizer
from .parallel import local_tensor

aten = torch.ops.aten
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(options: Optimizer, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW or RAdam over those ``weights`` that ask for gradients; weight decay is decoupled in both.

    Their learning rate is a tensor on the device, where `step_if` skips an update, too.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    given: dict[str, Any] = {
        "betas": (options.betas[0], options.betas[1]),
        "eps": options.eps,
        "weight_decay": options.weight_decay,
    }
    device = trained[0].device
    if options.name == "radam":
        return RAdam(trained, torch.tensor(options.lr, dtype=torch.float64, device=device), **given)
    rate = torch.tensor(options.lr, dtype=torch.float32, device=device)
    return torch.optim.AdamW(trained, rate, **given, fused=True, capturable=device.type == "cuda")


class RAdam(torch.optim.Optimizer):
    """RAdam (arXiv 1908.03265) with the arithmetic of torch.optim.RAdam, which waits for the device to skip.

    Every weight gets a gradient in every update, so that all have done as many steps.
    """

    found_inf: Tensor | None = None
    """Above 0 where the next step is to change nothing, (), on the device; None: no step is."""

    def __init__(
        self,
        weights: list[Tensor],
        lr: Tensor,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(weights, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of the weights that have gradients; gradients that are skipped become 0."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight in weights:
                if weight not in self.state:
                    self.state[weight]["step"] = torch.zeros((), device=weight.device)
                    self.state[weight] |= {kind: torch.zeros_like(weight) for kind in MOMENTS}
            if weights:
                self._update(group, weights)

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        (beta1, beta2), rate = group["betas"], group["lr"].double()
        taken = torch.ones_like(rate, dtype=torch.bool) if self.found_inf is None else self.found_inf == 0
        steps = [self.state[weight]["step"] for weight in weights]
        means, squares = ([local_tensor(self.state[weight][kind]) for weight in weights] for kind in MOMENTS)
        skip = ~taken
        gradients = [local_tensor(weight.grad).masked_fill_(skip, 0) for weight in weights]
        own = [local_tensor(weight) for weight in weights]

        def number(value: Tensor | float, skipped: float) -> Tensor:
            """What the weights are computed with."""
            return torch.where(taken, value, skipped).to(own[0].dtype)

        # torch._foreach_mul_ of a tensor would read its number from the device.
        add, multiply, divide = (getattr(aten, f"_foreach_{name}_").Tensor for name in ("add", "mul", "div"))
        add(steps, taken.to(steps[0].dtype))
        if group["weight_decay"]:
            multiply(own, number(1 - rate * group["weight_decay"], 1))
        torch._foreach_lerp_(means, gradients, [number(1 - beta1, 0)] * len(means))
        multiply(squares, number(beta2, 1))
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)

        done = steps[0].double()
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * done * beta2**done / (1 - beta2**done)
        known = length > 5  # the variance of the adaptive rate
        share = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        rate = rate / (1 - beta1**done)
        rectified = (1 - beta2**done).sqrt() * (rate * share.sqrt())
        change = torch._foreach_sqrt(squares)
        torch._foreach_add_(change, group["eps"])
        divide(change, number(-rectified.where(known, 0), 0))
        torch._foreach_reciprocal_(change)
        add(change, number(-rate.where(~known, 0), 0))
        torch._foreach_addcmul_(own, means, change)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For the next updates."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def step_if(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """One update, or none at all where ``finite`` (), bool, is false; as for a loss scaler."""
    optimizer.found_inf = (~finite).float()
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
