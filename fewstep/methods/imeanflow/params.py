from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class IMeanFlowParams(LossParams):
    title = "Improved MeanFlow"
    papers = ("2512.02012",)
    note = "guidance at one scale, not as an input"
    provenance = {"loss": "code"}
    target_time = True
    outputs = (1, 2)

    name: Literal["imeanflow"] = "imeanflow"
    times: TimeDistribution = TimeDistribution(law="logit-normal", mean=0.4, std=1.0)
    flow_matching_fraction: float = Field(
        default=0.5, ge=0, le=1, description="share of the batch with s = t"
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(
        default=1.22e-6,
        gt=0,
        description="c, beside a mean of squares: 0.01 over the 8,192 numbers of a latent",
    )
