from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.objectives import LossParams, TimeDistribution


class F2D2Params(LossParams):
    title = "F2D2"
    papers = ("2512.02636",)
    note = "sampling and likelihood; on shortcuts, or on MeanFlow"
    provenance = {"loss": "code", "loss.backward": "inferred"}
    target_time = True
    scalar = True

    name: Literal["f2d2"] = "f2d2"
    form: Literal["shortcut", "meanflow"] = Field(
        default="shortcut", description="how longer intervals are learned: of two halves, or by a derivative"
    )
    grid: int = Field(default=128, gt=1, description="shortcut: number of smallest jumps, a power of two")
    bootstrap: float = Field(default=0.5, gt=0, lt=1, description="shortcut: share of rows that learn jumps")
    times: TimeDistribution = Field(
        default=TimeDistribution(law="uniform"), description="meanflow: of both ends of an interval"
    )
    flow_matching_fraction: float = Field(
        default=0.5, ge=0, le=1, description="meanflow: share of the batch with s = t"
    )
    norm_power: float = Field(default=0.0, ge=0, le=1, description="of the velocity's adaptive weight")
    norm_constant: float = Field(default=1e-3, gt=0)
    backward: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the intervals that lead to the noise, as likelihoods do",
    )
    scale: float = Field(default=20000.0, gt=0, description="unit of the scalar: divergence / scale")
    divergence_weight: float = Field(default=1.0, ge=0, description="of the scalar's squared error")
    trace: Literal["probe", "exact"] = Field(
        default="probe", description="probe: one direction of random signs; exact: a tangent for each number"
    )

    @model_validator(mode="after")
    def _doubles(self) -> F2D2Params:
        if self.grid & (self.grid - 1):
            raise ValueError(f"grid {self.grid} is no power of two")
        return self
