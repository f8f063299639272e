"""Work on many items by all processes of a stage, which the main one puts together."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from ..core.precision import exact_convolutions

Item = TypeVar("Item")
Read = TypeVar("Read")
PATIENCE = timedelta(days=1)
"""How long a process waits for another: a chunk of a teacher in 250 steps may take an hour."""


def join_processes() -> torch.device:
    """Join the processes that torchrun started, if there are several, and return this one's device.

    They only exchange what is on the host, so that no exchange waits for a device.
    """
    exact_convolutions()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=PATIENCE)
    return device


def is_main() -> bool:
    """Whether this is the process that gets the results and writes files."""
    return not dist.is_initialized() or dist.get_rank() == 0


def from_main(value: Item) -> Item:
    """The main process's value, in all of them."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def wait_for_all() -> None:
    """Return once every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Those that are dealt to this process, in turn."""
    return items[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else items


def progress(items: Iterable[Item], total: int) -> Iterable[Item]:
    """The items, with a progress bar in the main process."""
    bar: Iterable[Item] = tqdm(items, total=total, unit="batch", mininterval=5, disable=not is_main())
    return bar


def distributed_map(
    read: Callable[[Item], Read], function: Callable[[Read], dict[str, Tensor]], items: Sequence[Item]
) -> Iterable[dict[str, Tensor]]:
    """``function`` of what is read for every item, in the order of the items, in the main process alone.

    The next item is read while the function works. Items are dealt in rounds, one to each process; results
    of several processes are on the CPU.
    """
    results: Iterator[dict[str, Tensor]] = map(function, _ahead(read, own_share(items)))
    if dist.is_initialized():
        results = _in_rounds(results, len(items))
    return progress(results, len(items)) if is_main() else list(results)


def _ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[Read]:
    """What is read for each item, one ahead, by a thread."""
    coming: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            coming.append(pool.submit(read, item))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _in_rounds(own: Iterator[dict[str, Tensor]], count: int) -> Iterator[dict[str, Tensor]]:
    """The results of all processes, of ``count`` in all, in their order."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    for first in range(0, count, processes):
        dealt = min(processes, count - first)
        result = {name: value.cpu() for name, value in next(own).items()} if rank < dealt else {}
        gathered: list[Any] | None = [None] * processes if rank == 0 else None
        dist.gather_object(result, gathered)
        yield from (gathered or [])[:dealt]
