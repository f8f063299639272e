"""Damaged files of tensors and arrays: one line that names the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.common.array_files import open_npz, read_npy_header
from fewstep.common.tensor_files import load_tensors, load_torch, open_safetensors


def read_npz(path: Path) -> None:
    with open_npz(path) as content:
        assert content["a"].shape == (500,)


def read_safetensors(path: Path) -> None:
    with open_safetensors(path) as file:
        file.get_tensor("a")


def write(path: Path) -> None:
    if path.suffix == ".npz":
        np.savez_compressed(path, a=np.random.default_rng(0).random(500))
    elif path.suffix == ".safetensors":
        save_file({"a": torch.rand(500)}, path)
    else:
        torch.save({"a": torch.rand(500)}, path)


@pytest.mark.parametrize(
    ("name", "read"), [("x.npz", read_npz), ("x.safetensors", read_safetensors), ("x.pt", load_torch)]
)
def test_truncated_empty_and_foreign_files(tmp_path: Path, name: str, read) -> None:
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    read(path)
    for content in (b"", whole[:20], whole[: len(whole) // 2], whole[:-30], b"<html>not here</html>", None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        path.touch()


def test_a_flipped_bit_inside_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz: not an npz file as expected: "):
        read_npz(path)


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([Path("anything")], dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz: .*Object arrays cannot be loaded"):
        read_npz(tmp_path / "x.npz")
    torch.save({"a": Path("anything")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: holds pickled objects \(pathlib"):
        load_tensors(tmp_path / "x.pt")


def test_arrays_in_another_order_or_of_objects_are_refused() -> None:
    def header(array: np.ndarray) -> io.BytesIO:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        stream.seek(0)
        return stream

    stream = header(np.zeros((2, 3), np.float16))
    assert read_npy_header(stream) == ((2, 3), np.float16) and len(stream.read()) == 12
    for array in (np.zeros((2, 3), order="F"), np.array([None])):
        with pytest.raises(ValueError, match="Fortran order, or of objects"):
            read_npy_header(header(array))
