"""When all jobs are done, on so many devices."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A job."""

    seconds: float
    devices: int
    """That it keeps busy; 0: none that are counted."""
    after: Sequence[int] = ()
    """Places of the tasks that it waits for, each once."""


def remaining(tasks: Sequence[Task]) -> list[float]:
    """Seconds from the start of each task to the end of the longest chain that it begins.

    Raises:
        ValueError: tasks wait for each other.
    """
    waiting = _waiting(tasks)
    open_ = [len(numbers) for numbers in waiting]
    ready = [number for number, count in enumerate(open_) if not count]
    found = [0.0] * len(tasks)
    for number in ready:
        found[number] = tasks[number].seconds + max((found[other] for other in waiting[number]), default=0.0)
        for other in tasks[number].after:
            open_[other] -= 1
            if not open_[other]:
                ready.append(other)
    if len(ready) < len(tasks):
        raise ValueError("jobs wait for each other")
    return found


def _waiting(tasks: Sequence[Task]) -> list[list[int]]:
    """For each task the places of those that wait for it."""
    found: list[list[int]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        for other in task.after:
            found[other].append(number)
    return found


def critical_path(tasks: Sequence[Task]) -> float:
    """Seconds of the longest chain: the end on any number of devices is no sooner."""
    return max(remaining(tasks), default=0.0)


def finish(tasks: Sequence[Task], devices: int) -> float:
    """Seconds until all tasks are done; of the ready ones that fit, that of the longest chain starts first.

    Raises:
        ValueError: a task needs more devices than there are, or tasks wait for each other.
    """
    first = remaining(tasks)
    wide = max((task.devices for task in tasks), default=0)
    if wide > devices:
        raise ValueError(f"a job needs {wide} devices, of {devices}")
    waiting = _waiting(tasks)
    blocked = [len(task.after) for task in tasks]
    ready = sorted((-first[number], number) for number, count in enumerate(blocked) if not count)
    running: list[tuple[float, int]] = []
    now, free = 0.0, devices
    while ready or running:
        left = []
        for entry in ready:
            task = tasks[entry[1]]
            if task.devices <= free:
                free -= task.devices
                heapq.heappush(running, (now + task.seconds, entry[1]))
            else:
                left.append(entry)
        ready = left
        now, number = heapq.heappop(running)
        ended = [number]
        while running and running[0][0] <= now:
            ended.append(heapq.heappop(running)[1])
        for number in ended:
            free += tasks[number].devices
            for other in waiting[number]:
                blocked[other] -= 1
                if not blocked[other]:
                    ready.append((-first[other], other))
        ready.sort()
    return now
