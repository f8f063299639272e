"""A stage's work dealt over its processes, the results in order in the main one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from .core.precision import exact_convolutions

Item = TypeVar("Item")


class Ranks:
    """The processes of a stage that evaluates networks; alone, no communication library is loaded."""

    def __init__(self) -> None:
        exact_convolutions()
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count == 1:
            self.device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self.main = True
            return
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.device = self._state.device
        self.main = self._state.is_main_process

    def work(self, items: Sequence[Item], make: Callable[[Item], Any]) -> Iterable[Any]:
        """Make every item once; the main process gets the results in order, the others get nothing.

        ``make`` returns a tensor, or something that holds tensors on the CPU.
        """
        if self.count == 1:
            return map(make, items)
        rounds = self._rounds(items, make)
        return rounds if self.main else list(rounds)

    def _rounds(self, items: Sequence[Item], make: Callable[[Item], Any]) -> Iterator[Any]:
        from accelerate.utils import gather_object

        for first in range(0, len(items), self.count):
            turn = items[first : first + self.count]
            rank = self._state.process_index
            mine = [_on_cpu(make(turn[rank]))] if rank < len(turn) else []
            yield from gather_object(mine) if self.main else gather_object(mine)[:0]


def _on_cpu(result: Any) -> Any:
    return result.cpu() if isinstance(result, torch.Tensor) else result
