"""Compiled blocks: the entries of a network's ``blocks``, which share their code."""

from __future__ import annotations

import torch
from torch import nn

GRAPHS = 64
"""Most graphs of one class of blocks; torch refuses to compile more."""


def compile_blocks(net: nn.Module, backend: str) -> None:
    """Compile each block of a bare network in place; names of weights stay.

    Weights are inputs of the compiled code: blocks of one class and size share it, and the depth costs
    nothing. What cannot be compiled is an error, and never runs uncompiled in silence.

    Args:
        backend: of torch.compile.
    """
    # All calls of one class of blocks count together: a method has up to 8 kinds of them.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for block in getattr(net, "blocks", ()):
        block.forward = torch.compile(block.forward, backend=backend, dynamic=False, fullgraph=True)
