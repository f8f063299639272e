from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class SoFlowParams(LossParams):
    title = "SoFlow"
    papers = ("2512.15657",)
    note = "no derivative"
    provenance = {"loss": "code"}
    target_time = True

    name: Literal["soflow"] = "soflow"
    flow_matching_fraction: float = Field(
        default=0.75, ge=0, le=1, description="share of the batch that learns v at s = t"
    )
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.2, std=1.0), description="of t in that share"
    )
    consistency_times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.2, std=0.8), description="of t elsewhere"
    )
    end_times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=1.0, std=0.8),
        description="of s elsewhere, raised to t",
    )
    ratio: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.1, 0.002],
        min_length=2,
        max_length=2,
        description="(l - t) / (s - t), at the first step and at the last",
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(default=0.01, gt=0)
