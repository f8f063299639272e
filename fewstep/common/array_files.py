"""Files of arrays that may come from anywhere: read without running code from them, and without torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .files import reading


@contextmanager
def open_npz(path: str | Path) -> Iterator[Any]:
    """The open file, a mapping of names to arrays (``numpy.load``).

    Raises:
        ValueError: in one line: the file is missing or damaged, or has no array that is asked for.
    """
    with reading(path, "an npz file as expected"):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("holds one array, not several by name")
        with content:
            yield content


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
