"""Published statistics of latents, and how far measured ones are from them."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from pydantic import Field

from ..common.files import sha256
from ..config import ConfigError, Strict
from ..config.settings import Tokenizer
from .records import read_record

USUAL = 0.1
"""Differences up to this are what another choice of images makes; in published standard deviations."""
REFUSED = 1.0


class Published(Strict):
    """Mean and standard deviation per channel as their authors give them."""

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    mean: list[float]
    std: list[float]

    def distance(self, mean: list[float], std: list[float]) -> float:
        """Largest difference of a channel's mean or deviation, in its published deviations."""
        return max(
            max(abs(m - own_mean), abs(s - own_std)) / own_std
            for m, s, own_mean, own_std in zip(mean, std, self.mean, self.std, strict=True)
        )

    def compare(self, mean: list[float], std: list[float]) -> None:
        """Warn of measured statistics that differ, and refuse those of plainly other latents.

        Raises:
            ConfigError: they are further off than one standard deviation.
        """
        distance = self.distance(mean, std)
        if distance <= USUAL:
            return
        text = (
            f"{self.file}: published statistics are {distance:.2f} standard deviations off those of the "
            f"latents (usual: below {USUAL})"
        )
        if distance > REFUSED:
            raise ConfigError(f"{text}: they belong to other latents; use tokenizer.statistics: computed")
        print(f"warning: {text}; are these the tokenizer and the images that they were made with?")


def published(tokenizer: Tokenizer, weights: Path | None) -> Published | None:
    """What ``tokenizer.statistics_file`` holds: a mapping of tensors mean and std, (1, C, 1, 1) each.

    Args:
        weights: record of the asset that has the file.

    Returns:
        None if the tokenizer does not ask for published statistics.

    Raises:
        ConfigError: a missing file or another content.
    """
    name = tokenizer.statistics_file
    if name is None:
        return None
    if weights is None:
        raise ConfigError("tokenizer.statistics: published needs the record of the weights; pass --tokenizer")
    path = read_record(weights).file(name)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise ConfigError(f"{path}: not a file of plain tensors: {error}") from None
    values = {}
    for key in ("mean", "std"):
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, torch.Tensor) or value.numel() != tokenizer.shape[0]:
            raise ConfigError(f"{path}: {key}: must be a tensor of {tokenizer.shape[0]} channels")
        if not value.isfinite().all() or (key == "std" and not (value > 0).all()):
            raise ConfigError(f"{path}: {key}: must be finite, and std positive")
        values[key] = [float(number) for number in value.flatten()]
    return Published(file=name, sha256=sha256(path), **values)
