"""Compiled blocks: the entries of a network's ``blocks``, which share their code."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import nn

GRAPHS = 64
"""Most graphs of one class of blocks; torch refuses to compile more."""


def check_compiler(option: str, backend: str, device: str) -> None:
    """Refuse inductor where it could not build its code: before minutes of loading, and in one line.

    On a CPU it wants a compiler of C++; on a GPU Triton wants one of C; both want Python's headers.

    Args:
        option: the user's, for the message.
        backend: of torch.compile.
        device: type of the device, "cpu" or "cuda".

    Raises:
        ValueError: naming what is missing.
    """
    if backend != "inductor":
        return
    variable, names = ("CXX", ["g++"]) if device == "cpu" else ("CC", ["gcc", "clang"])
    if os.environ.get(variable):
        names = [os.environ[variable]]
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = ""
    if not any(map(shutil.which, names)):
        missing = f"no compiler {' or '.join(names)} (variable {variable})"
    elif not header.is_file():
        missing = f"no {header} (Debian: python3-dev)"
    if missing:
        raise ValueError(f"{option}: {missing}; install it, or leave the option out")


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
