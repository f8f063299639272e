"""The module behind DistributedDataParallel and torch.compile, and the part of it that is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
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


@contextmanager
def resting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context the weights of these modules get no gradients, and nothing waits for any.

    Gradients still pass through the modules to their inputs.
    """
    modules = list(modules)
    _shard_again(modules)
    weights = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        for weight in weights:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            _shard_again(modules)
            for weight in weights:
                weight.requires_grad_(True)


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context FSDP2 keeps the weights of these modules from their first backward on.

    A backward through a gradient finds the weights that the gradient was computed with.
    """
    modules = list(modules)
    sharded = [module for module in modules if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_backward(False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_backward(True)
        _shard_again(modules)


def _shard_again(modules: Iterable[nn.Module]) -> None:
    """Let go of what FSDP2 has gathered, which would not follow a change of requires_grad."""
    for each in (part for module in modules for part in module.modules()):
        if isinstance(each, FSDPModule):
            each.reshard()
