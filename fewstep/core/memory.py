"""Work in parts that fit into the memory of a GPU, and tensors on their way to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class FittingBatches:
    """Applies a function to rows in parts, which are halved for good where the device's memory is short.

    The parts decide about the last bits of a network's output, and about nothing else: no result may
    depend on a part's position or size. On a CPU parts stay as large as they are asked for.

    Args:
        what: the work, for the message.
        rows: most rows of a part.
        release: called before a smaller part is tried, to give memory back.
    """

    def __init__(self, what: str, rows: int, release: Callable[[], None] | None = None) -> None:
        self.rows = rows
        self._what, self._release = what, release

    def __call__(self, function: Callable[[range], Result], rows: range) -> list[Result]:
        """What ``function`` returns of consecutive parts of ``rows``.

        Raises:
            torch.OutOfMemoryError: a single row does not fit.
        """
        done: list[Result] = []
        first = rows.start
        while first < rows.stop:
            part = range(first, min(first + self.rows, rows.stop))
            try:
                done.append(function(part))
                first = part.stop
                continue
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
            # Only here, past the handler, are the failed call's own tensors gone.
            self.rows = (len(part) + 1) // 2
            print(f"{self._what}: {self.rows} at a time, as more do not fit into the device's memory")
            if self._release is not None:
                self._release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def place(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; to a GPU of CUDA from pinned memory, without waiting for it."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> str:
    """Name of a GPU and how much of its memory is free, for a message."""
    free, total = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
