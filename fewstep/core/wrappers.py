"""The module behind DistributedDataParallel and torch.compile."""

from __future__ import annotations

from torch import nn
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
