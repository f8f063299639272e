"""What a training step is given: its batch and its random numbers, made on the CPU ahead of the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from ..core.method import Batch
from ..core.rng import Draw
from ..data.loader import Loader

AHEAD = 2
"""Steps that are prepared while the device works."""

Given = tuple[Batch, dict[Draw, Tensor]]


class Feed:
    """Batches and draws of a process's rows, on the device.

    On a GPU they are made by a thread, pinned, and copied without waiting into the same memory for every
    step, where a captured step finds them; what a step was given is void once the next one is asked for.

    Args:
        seed, total: of the training and of its global batch.
        parts: rows of this process, cut as they are handled: contiguous, one after the other.
        draws_of: the draws that a step is known to need.
        steps: length of the training.
        load: is given the labels of a step's batch when it is handed out, to bring what belongs to them.
    """

    def __init__(
        self,
        loader: Loader,
        seed: int,
        total: int,
        parts: list[slice],
        device: torch.device,
        draws_of: Callable[[int], Collection[Draw]],
        steps: int,
        load: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._loader, self._seed, self._total, self._device = loader, seed, total, device
        self._parts, self._draws_of, self._steps, self._load = parts, draws_of, steps, load
        self._rows = slice(parts[0].start, parts[-1].stop)
        self._ahead = AHEAD if device.type == "cuda" else 0
        self._pool = ThreadPoolExecutor(1) if self._ahead else None
        self._coming: dict[int, Future[Given]] = {}
        self._memory: dict[str | Draw, Tensor] = {}
        self._ends: deque[torch.cuda.Event] = deque()
        self.waited = 0.0
        """Seconds that steps have waited for their batch."""

    def take(self, step: int) -> list[Given]:
        """Batch and draws of a step, for each part."""
        if self._pool is not None:
            self._coming = {at: made for at, made in self._coming.items() if at >= step}
            for at in range(step, min(step + 1 + self._ahead, self._steps)):
                if at not in self._coming:
                    self._coming[at] = self._pool.submit(self._make, at)
            self._wait_for_earlier_steps()
        start = time.monotonic()
        batch, draws = self._coming.pop(step).result() if step in self._coming else self._make(step)
        if self._load is not None:
            self._load(batch.y)
        self.waited += time.monotonic() - start
        x1, x0, y = (self._place(name, getattr(batch, name)) for name in ("x1", "x0", "y"))
        numbers = {draw: self._place(draw, tensor) for draw, tensor in draws.items()}
        first = self._rows.start
        found = []
        for part in self._parts:
            own = slice(part.start - first, part.stop - first)
            made = {draw: tensor[own] for draw, tensor in numbers.items()}
            found.append((Batch(x1[own], x0[own], y[own]), made))
        return found

    def _wait_for_earlier_steps(self) -> None:
        """The host is no more than AHEAD steps before the device, so that batches do not pile up."""
        self._ends.append(torch.cuda.current_stream(self._device).record_event())
        if len(self._ends) > AHEAD:
            self._ends.popleft().synchronize()

    def _make(self, step: int) -> Given:
        batch = self._loader.rows(step, self._rows)
        draws = {draw: draw.make(self._seed, step, self._total)[self._rows] for draw in self._draws_of(step)}
        if self._pool is None:
            return batch, draws
        batch = Batch(batch.x1.pin_memory(), batch.x0.pin_memory(), batch.y.pin_memory())
        return batch, {draw: tensor.pin_memory() for draw, tensor in draws.items()}

    def _place(self, name: str | Draw, tensor: Tensor) -> Tensor:
        """On the device, in the memory that belongs to ``name``."""
        if self._device.type == "cpu":
            return tensor
        if name not in self._memory:
            self._memory[name] = torch.empty_like(tensor, device=self._device)
        return self._memory[name].copy_(tensor, non_blocking=True)
