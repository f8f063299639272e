from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...config.objectives import LossParams


class ICTParams(LossParams):
    title = "iCT"
    papers = ("2310.14189",)
    note = "on latents"
    provenance = {"loss": "paper"}

    name: Literal["ict"] = "ict"
    intervals: list[Annotated[int, Field(gt=0)]] = Field(
        default=[10, 1280], min_length=2, max_length=2, description="of the grid, in the first and last stage"
    )
    mean: float = Field(default=-0.407, description="of ln sigma, by which intervals are drawn")
    std: float = Field(default=2.0, gt=0)
    huber: float = Field(default=0.00108, gt=0, description="c of the pseudo-Huber loss")

    @model_validator(mode="after")
    def _grows(self) -> ICTParams:
        if self.intervals[0] > self.intervals[1]:
            raise ValueError(f"intervals {self.intervals} must not fall")
        return self
