"""Low-rank adapters of linear layers (arXiv 2106.09685), by peft, and the network below them as a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config.backbones import Lora
from ..core.wrappers import unwrap


def add_adapters(net: nn.Module, lora: Lora) -> None:
    """Give linear layers of ``net`` adapters A (gaussian) and B (zero), and freeze all else, in place.

    The weights of such a layer move from ``NAME.weight`` to ``NAME.base_layer.weight``.

    Raises:
        ValueError: a target that names no linear layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    for target in lora.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise ValueError(f"backbone.lora.targets: {target} is the end of no linear layer's name")
    options = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank * lora.scaling,
        init_lora_weights="gaussian",
        target_modules=lora.targets,
    )
    inject_adapter_in_model(options, net)


def base_name(name: str) -> str:
    """The name that a tensor of the state dict has in a network without adapters."""
    return name.replace(".base_layer.", ".")


class AdaptersOff(nn.Module):
    """The network below the adapters of ``net``: the same weights, called as the network of one time.

    It is called past DistributedDataParallel, and never records a graph.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        from peft.tuners.tuners_utils import BaseTunerLayer

        self.net = unwrap(net)
        self._layers = [module for module in self.net.modules() if isinstance(module, BaseTunerLayer)]

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Any:
        """The velocity at times t; s is ignored."""
        with torch.no_grad(), self._off():
            return self.net(x, t, None, y)

    @contextmanager
    def _off(self) -> Iterator[None]:
        # peft's enable_adapters(False) would also take the adapters' requires_grad, on which
        # DistributedDataParallel and FSDP2 rely.
        before = [layer._disable_adapters for layer in self._layers]
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, value in zip(self._layers, before, strict=True):
                layer._disable_adapters = value
