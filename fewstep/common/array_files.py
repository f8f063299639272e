"""Files of arrays that may come from anywhere: read without running code from them, and without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from .files import reading

MOST_BYTES = 1 << 31
"""The most that an array may take in memory."""


@contextmanager
def open_npz(path: str | Path) -> Iterator[NpzArrays]:
    """The open file, a mapping of names to arrays.

    Raises:
        ValueError: in one line: the file is missing or damaged, or has no array that is asked for.
    """
    with reading(path, "an npz file as expected"):
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("holds one array, not several by name")
        with content:
            yield NpzArrays(content)


class NpzArrays(Mapping[str, np.ndarray]):
    """The arrays of an open npz file; one is read when it is asked for, after a look at its size."""

    def __init__(self, content: np.lib.npyio.NpzFile) -> None:
        self._content = content

    def __getitem__(self, name: str) -> np.ndarray:
        """Raises a ValueError, before memory is taken, if the array is not of the size of its file."""
        archive = self._content.zip
        assert archive is not None
        size = archive.getinfo(f"{name}.npy").file_size
        with archive.open(f"{name}.npy") as stream:
            shape, _, dtype = _read_header(stream)
            needed = stream.tell() + math.prod(shape) * dtype.itemsize
        if size > MOST_BYTES or (needed != size and not dtype.hasobject):
            raise ValueError(f"{name} is an array of {needed} bytes in a file of {size} (most: {MOST_BYTES})")
        array: np.ndarray = self._content[name]
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._content

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an npy header of version {version}, not (1, 0)")
    return readers[version](stream)


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the .npy array that ``stream`` stands at; afterwards it stands at the raw data.

    Raises:
        ValueError: not the header of an array of numbers in C order.
    """
    shape, fortran_order, dtype = _read_header(stream)
    if fortran_order or dtype.hasobject:
        raise ValueError("an npy array in Fortran order, or of objects")
    return shape, dtype
