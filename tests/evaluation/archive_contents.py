"""What image archives hold, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fewstep.evaluation.image_archive import open_images


def card_of(path: Path) -> dict[str, Any]:
    return open_images(path).card


def images_of(path: Path) -> torch.Tensor:
    """All images (n, C, H, W)."""
    archive = open_images(path)
    return torch.cat([torch.from_numpy(archive.images(batch)) for batch in range(len(archive.sizes))])
