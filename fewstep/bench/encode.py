"""Tokenizers: images to latents."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..data.tokenizers import Coder, Pixels
from .cases import Case
from .models import autoencoder, images, vavae_of


def cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Tokenizers: images to latents."""
    coders: dict[str, tuple[Coder, Tensor]] = {"vavae": (vavae_of(True), images(given.batch, 3, 256))}
    if not given.large:
        digits = images(given.batch, 1, 8)
        coders = {
            "pixels 1x8x8": (Pixels(), digits),
            "autoencoder 1x8x8": (autoencoder(), digits),
            "vavae, small, 3x32x32": (vavae_of(False), images(given.batch, 3, 32)),
        }

    def case(name: str, coder: Coder, images: Tensor) -> Case:
        @torch.no_grad()
        def call() -> None:
            coder.encode(images, range(len(images)))

        return Case(name, call, len(images), "images")

    return [case(name, *each) for name, each in coders.items()]
