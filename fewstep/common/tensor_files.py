"""Files of tensors that may come from anywhere: read without running code from them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .files import first_line, reading


def load_torch(path: str | Path) -> Any:
    """Content of a file that ``torch.save`` wrote, on the CPU, memory-mapped where its format allows it.

    Raises:
        ValueError: in one line: the file is damaged, or holds objects other than tensors and plain
            containers, which could run any code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds pickled objects ({found[1]})" if found else "not a torch file of plain tensors"
        raise ValueError(
            f"{path}: {what}, and is not opened, as objects could run any code; if you trust it, save its "
            f"tensors as .safetensors and name that file"
        ) from None
    except Exception as error:
        raise ValueError(f"{path}: not a torch file: {first_line(error)}") from None


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """The open file (``safetensors.safe_open``), whose tensors come as torch tensors on the CPU.

    Raises:
        ValueError: in one line: the file is missing or damaged.
    """
    with reading(path, "a safetensors file"), safe_open(path, framework="pt") as file:
        yield file


def load_tensors(path: Path) -> Any:
    """Content of a file of weights: of a .safetensors file a dict of tensors, else `load_torch`'s."""
    if path.suffix != ".safetensors":
        return load_torch(path)
    with open_safetensors(path) as file:
        return read_all(file)


def read_all(file: Any) -> dict[str, Tensor]:
    """All tensors of an open safetensors file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
