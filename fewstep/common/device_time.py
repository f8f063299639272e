"""The time of a training on its devices, in a small file beside the model; it is no part of a result.

A training that is stopped or killed and started again has several parts, which are added up: lost steps, done
after the last saved state or before the first, are counted too, because they were paid. The file is written
while the training runs, so that the part of a killed process lacks no more than `INTERVAL`.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from .files import reading, write_text

FILE = "time.json"
"""Name of the record, beside the model."""
INTERVAL = 60.0
"""Seconds between two writes."""


@dataclass(frozen=True)
class Part:
    """What one start of a training has used until it ended."""

    device: str
    """Name of the GPU, or of the processor."""
    gpu: bool
    count: int
    """Of the GPUs, or of the processor's cores."""
    seconds: float
    """Of wall time."""
    memory: float
    """Most GB (1e9 bytes) at once: of the first GPU's tensors, or of the first process; 0: not known."""

    @property
    def hours(self) -> float:
        """In its unit."""
        return self.count * self.seconds / 3600

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.gpu else "core-hours"


@dataclass(frozen=True)
class DeviceTime:
    """All parts of one training."""

    training: str
    """What tells it from others that write the same model."""
    finished: bool = False
    parts: list[Part] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def memory(self) -> float:
        return max(part.memory for part in self.parts)

    def hours(self, unit: str) -> float:
        """GPU-hours, or core-hours."""
        return sum(part.hours for part in self.parts if part.unit == unit)


def read_time(path: Path) -> DeviceTime | None:
    """The record of a training; None where there is none, or no part of it has been measured.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return None
    with reading(path, "the time of a training; remove it"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        found = DeviceTime(**{**raw, "parts": [Part(**part) for part in raw["parts"]]})
        if not all(part.seconds >= 0 and part.count > 0 and part.memory >= 0 for part in found.parts):
            raise ValueError("a number below 0")
    return found if found.parts else None


@contextmanager
def measured_time(path: Path, training: str, part: Part, memory: Callable[[], float]) -> Iterator[None]:
    """Add the time of the block to the record, while it runs and when it ends, however it ends.

    Args:
        training: parts of an unfinished one of this name are kept, those of another are dropped.
        part: of this process; its seconds are those before the block.
        memory: most GB so far.
    """
    start = time.monotonic() - part.seconds
    try:
        before = read_time(path)
    except ValueError as error:
        print(f"{error}; the time of earlier parts is not counted", flush=True)
        before = None
    if before is None or before.finished or before.training != training:
        before = DeviceTime(training)
    ended = threading.Event()

    def write(finished: bool = False) -> None:
        now = replace(part, seconds=round(time.monotonic() - start, 1), memory=round(memory(), 3))
        record = replace(before, finished=finished, parts=[*before.parts, now])
        try:
            write_text(path, json.dumps(asdict(record), indent=1) + "\n")
        except OSError as error:
            print(f"{path}: the time of this training was not written: {error}", flush=True)

    def repeat() -> None:
        while not ended.wait(INTERVAL):
            write()

    thread = threading.Thread(target=repeat, daemon=True)
    finished = False
    write()
    thread.start()
    try:
        yield
        finished = True
    finally:
        ended.set()
        thread.join()
        write(finished)


def processor() -> str:
    """Name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
