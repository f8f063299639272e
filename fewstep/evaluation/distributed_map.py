"""A function applied to many items by all processes of a stage, with the results in order in the main one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..core.precision import exact_convolutions

Item = TypeVar("Item")
Result = TypeVar("Result")


def join_processes() -> torch.device:
    """Join the processes that torchrun started, if there are several, and return this one's device."""
    exact_convolutions()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    return device


def is_main() -> bool:
    """Whether this is the process that gets the results and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def distributed_map(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
    """``function`` of every item, in the order of the items; processes other than the main one get nothing.

    Results are tensors on any device, or hold tensors on the CPU. Items are dealt in rounds, one item to each
    process; the main process shows a progress bar.
    """
    results = _in_rounds(function, items) if dist.is_initialized() else map(function, items)
    return tqdm(results, total=len(items), unit="batch", mininterval=5) if is_main() else list(results)


def _in_rounds(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    rank, processes = dist.get_rank(), dist.get_world_size()
    for first in range(0, len(items), processes):
        dealt = items[first : first + processes]
        result: Any = function(dealt[rank]) if rank < len(dealt) else None
        if isinstance(result, torch.Tensor):
            result = result.cpu()
        gathered: list[Any] | None = [None] * processes if rank == 0 else None
        dist.gather_object(result, gathered)
        yield from (gathered or [])[: len(dealt)]
