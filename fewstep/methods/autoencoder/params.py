from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams


class AutoencoderParams(LossParams):
    title = "Autoencoder"
    note = "the demo's tokenizer"
    kind = "image"

    name: Literal["autoencoder"] = "autoencoder"
    noise: float = Field(default=0.1, ge=0, description="standard deviation added to the latent")
    penalty: float = Field(default=1e-3, ge=0, description="weight of the squared latent")
