from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.objectives import LossParams


class ShortcutParams(LossParams):
    title = "Shortcut"
    papers = ("2410.12557",)
    provenance = {"loss": "paper", "loss.guidance": "code", "loss.clamp": "code", "loss.longest": "code"}
    target_time = True

    name: Literal["shortcut"] = "shortcut"
    grid: int = Field(default=128, gt=1, description="M: number of smallest jumps, a power of two")
    bootstrap: float = Field(default=0.125, gt=0, lt=1, description="share of the batch that learns jumps")
    longest: float = Field(
        default=0.125, ge=0, lt=1, description="share of these rows with the jump of length 1 in any case"
    )
    guidance: float = Field(default=1.5, ge=1, description="scale of the smallest jumps without a teacher")
    clamp: float | None = Field(default=4.0, gt=0, description="elementwise bound of what is bootstrapped")
    target_decay: float = Field(default=0.999, ge=0, lt=1, description="of the moving average that jumps")

    @model_validator(mode="after")
    def _doubles(self) -> ShortcutParams:
        if self.grid & (self.grid - 1):
            raise ValueError(f"grid {self.grid} is no power of two")
        return self
