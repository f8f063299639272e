from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class SplitMeanFlowParams(LossParams):
    title = "SplitMeanFlow"
    papers = ("2507.16884",)
    note = "no derivative"
    provenance = {"loss": "inferred"}  # the paper evaluates speech; nothing is released for images
    target_time = True

    name: Literal["splitmeanflow"] = "splitmeanflow"
    times: TimeDistribution = TimeDistribution()
    flow_matching_fraction: float = Field(
        default=0.5, ge=0, le=1, description="share of the batch with s = t, which learns v"
    )
    norm_power: float = Field(default=0.0, ge=0, le=1)
    norm_constant: float = Field(default=1e-3, gt=0)
