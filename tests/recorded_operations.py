"""Operations as they are dispatched, to find on a CPU those that would wait for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "item", "bincount")
FACTORIES = ("zeros", "ones", "full", "empty", "arange", "linspace", "scalar_tensor", "rand", "randn", "eye")


class Recorder(TorchDispatchMode):
    """Notes operations with the shapes and numbers they are given; refuses what waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        if name in WAITING or any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices):
            raise AssertionError(f"{func}: waits for the device")
        unplaced = name in FACTORIES and (kwargs or {}).get("device") is None
        if name.startswith("lift_fresh") or unplaced:
            raise AssertionError(f"{func}: a tensor is made on the CPU")
        self.seen.append((str(func), *map(signature, [*args, *(kwargs or {}).values()])))
        return func(*args, **(kwargs or {}))


def signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, list | tuple):
        return tuple(map(signature, value))
    return value if isinstance(value, int | float | str | bool | None) else str(value)
