"""What several test files here share beside fixtures."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLERS = {1: "cm", 2: "cm", 50: "euler"}


def sampler_of(row, steps: int) -> str:
    """The filling rule of the plan in short: the row's sampler, else that of the number of steps."""
    if isinstance(row.sampler, dict):
        return row.sampler.get(steps, row.sampler["default"])
    return row.sampler or SAMPLERS.get(steps, "mix")
