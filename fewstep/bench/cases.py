"""What a benchmark is made of: cases that take turns, and a clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Call = Callable[[], None]


def now() -> float:
    """Seconds, after the device has done all that it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, str]:
    """Columns that say where this ran."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"device": name, "threads": str(torch.get_num_threads())}


class Clock:
    """Seconds spent inside a part of a case."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        start = now()
        yield
        self.seconds += now() - start


@dataclass
class Case:
    """One thing to measure: ``call`` does ``amount`` of it, spending the time of ``inside`` in ``part``."""

    name: str
    call: Call
    amount: int
    unit: str
    inside: Clock | None = None
    part: str = ""
    clock: Callable[[], float] = now
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)

    def prepare(self) -> None:
        """Before the first turn: buffers, kernels and file caches."""
        self.call()

    def turn(self) -> None:
        before = self.inside.seconds if self.inside else 0.0
        start = self.clock()
        self.call()
        self.seconds.append(self.clock() - start)
        if self.inside:
            self.shares.append((self.inside.seconds - before) / self.seconds[-1])

    def row(self, first: Case) -> dict[str, str]:
        """A row of the table: rates by the least and the median time; ``relative`` time to the first case."""
        return {
            "case": self.name,
            **machine(),
            "unit": f"{self.unit}/s",
            "best": f"{self.amount / min(self.seconds):.4g}",
            "median": f"{self.amount / median(self.seconds):.4g}",
            "ms": f"{1e3 * min(self.seconds):.4g}",
            "relative": f"{min(self.seconds) / min(first.seconds):.3f}",
            "share": f"{median(self.shares):.2f} {self.part}" if self.shares else "",
        }
