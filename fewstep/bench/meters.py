"""What benchmarks measure with: timed cases that take turns, peak memory, operations a second, profiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Call = Callable[[], None]

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


def clock() -> float:
    """Seconds of work: of the process on a CPU, where others may share the core; by the wall on a GPU."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, str]:
    """Columns that say where this ran."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"device": name, "threads": str(torch.get_num_threads())}


@dataclass
class Case:
    """One thing to measure: ``call`` handles ``amount`` images."""

    words: dict[str, str]
    """Columns that tell it from the other cases."""
    call: Call
    amount: int
    seconds: list[float] = field(default_factory=list, init=False)
    note: str = field(default="", init=False)
    """Why it failed."""

    def attempt(self, action: Call) -> None:
        """``action``, a method of this case, unless the case has failed; a failure is its row's alone."""
        if self.note:
            return
        try:
            action()
        except Exception as failure:
            lines = f"{type(failure).__name__}: {failure}".splitlines()
            self.note = lines[0][:100]
        if self.note and DEVICE.type == "cuda":
            torch.cuda.empty_cache()

    def warm_up(self) -> None:
        """Call once before the first measurement: buffers, kernels and file caches."""
        self.call()

    def measure(self) -> None:
        """Call once, timed."""
        start = clock()
        self.call()
        self.seconds.append(clock() - start)

    def row(self, first: Case) -> dict[str, str]:
        """A row of the table: the case, where it ran, its numbers or why there are none."""
        numbers = dict.fromkeys(self.columns(), "") if self.note else self.numbers(first)
        return {**self.words, **machine(), **numbers, "note": self.note}

    def columns(self) -> Sequence[str]:
        """Names of the numbers."""
        return "images/s", "median images/s", "ms", "relative"

    def numbers(self, first: Case) -> dict[str, str]:
        """Rates by the least and the median time; ``relative`` time to the first case."""
        least = min(self.seconds)
        values = (
            f"{self.amount / least:.4g}",
            f"{self.amount / median(self.seconds):.4g}",
            f"{1e3 * least:.4g}",
            "" if first.note else f"{least / min(first.seconds):.3f}",
        )
        return dict(zip(self.columns(), values, strict=True))

    def profile(self) -> dict[str, str]:
        """A row that says where the time of a call goes."""
        groups = where_time_goes(self.call)
        least = 1e3 * min(self.seconds)
        if DEVICE.type == "cuda":
            groups["idle"] = max(0.0, least - sum(groups.values()))
        return {**self.words, "ms": f"{least:.4g}", **{name: f"{ms:.4g}" for name, ms in groups.items()}}


GROUPS = {
    "attention": ("attention", "flash", "fmha", "sdpa", "_tangent"),
    "products": ("gemm", "::mm", "addmm", "bmm", "matmul", "linear", "conv", "cutlass", "nvjet", "xmma"),
    "optimizer": ("multi_tensor", "fused_adam", "foreach", "lerp"),
    "copies": ("copy", "memcpy", "memset", "clone", "cat"),
}
"""Group of an operation or kernel by a part of its name, the first that fits; all else is elementwise."""


def where_time_goes(call: Call) -> dict[str, float]:
    """Milliseconds of the device by group of kernels; on a CPU, of the processor by group of operations."""
    gpu = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as record:
        call()
        clock()
    found = dict.fromkeys([*GROUPS, "elementwise"], 0.0)
    for event in record.key_averages():
        if gpu and event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        name = event.key.lower()
        group = next((g for g, parts in GROUPS.items() if any(part in name for part in parts)), "elementwise")
        found[group] += (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e3
    return found


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
        most: int = torch.cuda.max_memory_allocated() - before
        return most
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = top = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            top = max(top, held)
    return top


def peak_flops(precision: str) -> tuple[float, str]:
    """Operations that the device can do in a second, and where the number is from.

    Args:
        precision: "no", "bf16" or "fp16".
    """
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    if precision != "no":
        for part, teraflops in PEAKS.items():
            if part in name:
                return 1e12 * teraflops, "data sheet"
    dtype = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    size = 8192 if DEVICE.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=dtype)
    seconds = []
    for _ in range(10):
        start = clock()
        torch.mm(a, b)
        seconds.append(clock() - start)
    return 2 * size**3 / min(seconds), "measured"
