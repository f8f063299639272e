"""Files of tensors and arrays that may come from anywhere: read without running code from them."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


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
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: not a torch file: {_first_line(error)}") from None


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """The open file (``safetensors.safe_open``), whose tensors come as torch tensors on the CPU.

    Raises:
        ValueError: in one line: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file: {_first_line(error)}") from None


def load_tensors(path: Path) -> Any:
    """Content of a file of weights: of a .safetensors file a dict of tensors, else `load_torch`'s."""
    if path.suffix != ".safetensors":
        return load_torch(path)
    with open_safetensors(path) as file:
        return read_all(file)


def read_all(file: Any) -> dict[str, Tensor]:
    """All tensors of an open safetensors file, by name."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def open_npz(path: str | Path) -> Iterator[Any]:
    """The open file, a mapping of names to arrays (``numpy.load``).

    Raises:
        ValueError: in one line: the file is missing or damaged, or has no array that is asked for.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("holds one array, not several by name")
        with content:
            yield content
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not an npz file as expected: {_first_line(error)}") from None


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the .npy array that ``stream`` stands at; afterwards it stands at the raw data.

    Raises:
        ValueError: not the header (version 1.0) of an array of numbers in C order.
    """
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an npy header of version {version}, not (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype.hasobject:
        raise ValueError("an npy array in Fortran order, or of objects")
    return shape, dtype


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
