"""The module behind DistributedDataParallel and torch.compile, and the part of it that is trained."""

from __future__ import annotations

from torch import Tensor, nn
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


def trained_state(net: nn.Module) -> dict[str, Tensor]:
    """The bare module's state dict; of adapters on a frozen network only what is in its ``trained``."""
    bare = unwrap(net)
    state: dict[str, Tensor] = bare.state_dict()
    names = getattr(bare, "trained", None)
    return state if names is None else {name: state[name] for name in state if name in names}
