"""Arithmetic of losses, guidance and evaluation: never below float32, whatever a training computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def upcast(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is that already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def full_precision(device: str) -> AbstractContextManager[None]:
    """Within this context, autocast is off for a type of device."""
    # The meta device has no autocast to switch off.
    known = torch.amp.is_autocast_available(device)
    off: AbstractContextManager[None] = torch.autocast(device, enabled=False) if known else nullcontext()
    return off


def exact_convolutions() -> None:
    """Convolutions of this process in all of float32, where cuDNN would take less, and by one algorithm."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True


def cast_blocks(net: nn.Module, dtype: torch.dtype) -> None:
    """Cast now what autocast would cast at every use in those layers of ``blocks`` that are not trained."""
    for module in (inner for block in getattr(net, "blocks", ()) for inner in block.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
            module.to(dtype)
