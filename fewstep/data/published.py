"""Latents that others encoded: safetensors files in the layout of LightningDiT's extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import ConfigError
from ..config.settings import Dataset
from .classes import check_label
from .records import Record

VIEWS = ("latents", "latents_flip")


class PublishedLatents:
    """``latents`` and ``latents_flip`` (n, C, h, w) and ``labels`` (n,) of each file, raw.

    Files are concatenated in the order of their names (latents_rank00_shard000.safetensors, ...).

    Raises:
        ConfigError: damaged files, missing tensors, other shapes, or another number of images.
    """

    def __init__(self, dataset: Dataset, shape: list[int], views: int, record: Record) -> None:
        self._dataset = dataset
        self._keys = VIEWS[:views]
        names = sorted(file.name for file in record.body.files if file.name.endswith(".safetensors"))
        self._paths = [record.file(name) for name in names]
        starts = [0]
        for path in self._paths:
            starts.append(starts[-1] + self._measure(path, shape))
        if starts[-1] != dataset.images:
            raise ConfigError(
                f"{record.path}: dataset.images: found {starts[-1]} in {len(names)} .safetensors files, "
                f"the configuration says {dataset.images}"
            )
        self._starts = np.array(starts)

    def _measure(self, path: Path, shape: list[int]) -> int:
        """Number of images of a file, after a look at its header."""
        try:
            with safe_open(path, framework="pt") as file:
                found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: not a safetensors file: {error}") from None
        if missing := [key for key in (*self._keys, "labels") if key not in found]:
            raise ConfigError(f"{path}: has no {missing[0]}, only {sorted(found)}")
        count = found["labels"][0] if found["labels"] else 0
        for key in self._keys:
            if found[key] != [count, *shape]:
                raise ConfigError(f"{path}: {key}: shape {found[key]}, not {[count, *shape]}")
        return count

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Latents float32 (n, views, C, h, w) and labels int64 (n,) of positions start..stop-1."""
        latents, labels = [], []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for path, low in zip(self._paths[first:], self._starts[first:].tolist()):
            if low >= stop:
                break
            part = slice(max(start - low, 0), stop - low)
            with safe_open(path, framework="pt") as file:
                latents.append(torch.stack([file.get_slice(key)[part].float() for key in self._keys], dim=1))
                labels.append(file.get_slice("labels")[part].long())
            for label in labels[-1].tolist():
                check_label(f"{path}: labels", self._dataset, label, None)
        return torch.cat(latents), torch.cat(labels)
