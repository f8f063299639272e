"""Peak memory of a call, and the most operations that a device does in a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from .cases import DEVICE, Call, now

PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 4090": 165,
}
"""TFLOP/s of products of dense bfloat16 matrices on the maker's data sheet, by a part of the name."""


def peak_bytes(call: Call) -> int:
    """Most bytes of tensors that ``call`` held at once, beside those that were there before.

    On a GPU the allocator counts; on a CPU the profiler's record of every allocation is added up. Scratch
    memory of libraries, which is small, is in neither.
    """
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = top = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            top = max(top, held)
    return top


def work_clock() -> Callable[[], float]:
    """Seconds of work: of the process on a CPU, where others may share the core; by the wall on a GPU."""
    return now if DEVICE.type == "cuda" else time.process_time


def peak_flops(precision: str, known: float | None = None) -> tuple[float, str]:
    """Operations that the device can do in a second, and where the number is from.

    Args:
        precision: "no", "bf16" or "fp16".
        known: TFLOP/s, given by hand.
    """
    if known is not None:
        return 1e12 * known, "given"
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    if precision != "no":
        for part, teraflops in PEAKS.items():
            if part in name:
                return 1e12 * teraflops, "data sheet"
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 8192 if DEVICE.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
    clock, seconds = work_clock(), []
    for _ in range(10):
        start = clock()
        torch.mm(a, b)
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds), "measured"
