"""The module behind DistributedDataParallel and torch.compile, and the part of a tensor that is here."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


def unwrap(net: nn.Module) -> nn.Module:
    """The bare module, whose parameter names are those of the checkpoint."""
    while True:
        if isinstance(net, DistributedDataParallel):
            net = net.module
        elif hasattr(net, "_orig_mod"):  # torch.compile's wrapper has no public name
            net = net._orig_mod
        else:
            return net


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded, in the same memory, without a graph."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
