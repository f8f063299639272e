"""Images as they are stored and compared."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize(images: Tensor, rule: str) -> Tensor:
    """Images in [-1, 1] as bytes; or, for the rule ``none``, float32 data as they are.

    ``round`` takes the nearest level, ``truncate`` the level below, as FACM's release does. NaN silently
    becomes a colour: `refuse_nan` is for that, when the device need not be waited for.
    """
    if rule == "none":
        return images.float()
    scaled = (images.float().clamp(-1, 1) + 1) * 127.5
    return (scaled.round() if rule == "round" else scaled).to(torch.uint8)


def refuse_nan(found: Tensor) -> None:
    """Raise if there was NaN.

    Args:
        found: whether, a bool of images before they were bytes.

    Raises:
        ValueError: there was.
    """
    if found:
        raise ValueError("an image holds NaN; did the training diverge?")
