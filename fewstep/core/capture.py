"""Steps as CUDA graphs: captured once for each kind of step, then replayed by one launch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor

from .heads import Output

Result = TypeVar("Result")
WARM_UP = 3
"""Ordinary steps of a kind before its capture: they allocate, choose kernels and compile blocks."""
WARM_UP_DDP = 11
"""The same under DistributedDataParallel, which rebuilds its buckets first (torch's notes on CUDA graphs)."""


class CapturedSteps:
    """Runs steps, each kind from a graph of its own once that is captured.

    A step must read its inputs from the same memory every time, never wait for the device, and have
    shapes and Python numbers that depend on its kind alone. It is called again after a capture that failed,
    and must then start anew. All steps run on a stream of their own, which becomes the current one.
    """

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self._warm_up = warm_up
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, object]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._out_of_memory = False
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        torch.cuda.set_stream(stream)

    @property
    def graphs(self) -> int:
        """How many kinds of steps are captured."""
        return len(self._graphs)

    def run(self, kind: Hashable, step: Callable[[], Result]) -> Result:
        """What ``step`` returns; of a captured step it is void once the next one runs."""
        if kind not in self._graphs:
            self._seen[kind] += 1
            if self._out_of_memory or self._seen[kind] <= self._warm_up or not self._capture(kind, step):
                return step()
        graph, result = self._graphs[kind]
        graph.replay()
        return result  # type: ignore[return-value]

    def _capture(self, kind: Hashable, step: Callable[[], Result]) -> bool:
        """Capture a step without running it; False where the memory does not suffice."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=torch.cuda.current_stream(),
                capture_error_mode="thread_local",  # other threads pin memory and wait for copies
            ):
                result = step()
        except torch.cuda.OutOfMemoryError:
            print("warning: --capture: no memory for a graph of the step; steps are launched one by one")
            self._out_of_memory = True
            torch.cuda.empty_cache()
            return False
        self._graphs[kind] = graph, result
        return True

    def forget(self) -> None:
        """Give the graphs' memory back, to capture again what is still needed."""
        self._graphs.clear()
        self._seen.clear()
        self._out_of_memory = False
        self._pool = torch.cuda.graph_pool_handle()


class CapturedNetwork:
    """A network whose calls are replayed: a graph for each shape of its inputs, without gradients.

    Args:
        net: from tensors on the device to a tensor, or to several.
    """

    def __init__(self, net: Callable[..., Output], steps: CapturedSteps) -> None:
        self._net, self._steps = net, steps
        self._inputs: dict[Hashable, tuple[Tensor, ...]] = {}

    def __call__(self, *inputs: Tensor) -> Output:
        """What the network returns of the inputs, in memory of its own."""
        shapes = tuple((tuple(given.shape), given.dtype) for given in inputs)
        if shapes not in self._inputs:
            self._inputs[shapes] = tuple(torch.empty_like(given) for given in inputs)
        own = self._inputs[shapes]
        for held, given in zip(own, inputs, strict=True):
            held.copy_(given)
        found = self._steps.run(shapes, lambda: self._net(*own))
        return found.clone() if isinstance(found, Tensor) else (found[0].clone(), found[1].clone())

    def forget(self) -> None:
        """Give the memory of all graphs and their inputs back."""
        self._inputs.clear()
        self._steps.forget()
