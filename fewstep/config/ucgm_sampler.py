"""The parameters of UCGM's sampler."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Strict


class UCGMSampling(Strict):
    """UCGM-S (arXiv 2505.07447, Algorithm 2): predict data and noise, extrapolate both, mix them anew."""

    condition: Literal["velocity", "end", "next"] = Field(
        description="target time s of the network: t itself, 1, or the next time"
    )
    rho: float = Field(default=0.0, ge=0, le=1, description="share of fresh noise, by variance")
    kappa: float = Field(default=0.0, ge=0, le=1, description="extrapolation from the third step on")
    schedule: list[float] = Field(
        default=[1.0, 1.0, 1.0],
        min_length=3,
        max_length=3,
        description="a, b, c of t = (1 - (1 - g^a)^b)^c, g uniform (Kumaraswamy)",
    )
    gaps: list[float] = Field(
        default=[0.0, 0.0], min_length=2, max_length=2, description="g of the first step, 1 - g of the last"
    )

    @model_validator(mode="after")
    def _possible(self) -> UCGMSampling:
        if min(self.schedule) <= 0:
            raise ValueError(f"schedule {self.schedule}: a, b and c must be above 0")
        if min(self.gaps) < 0 or sum(self.gaps) >= 1:
            raise ValueError(f"gaps {self.gaps} must not be negative, nor sum to 1")
        return self
