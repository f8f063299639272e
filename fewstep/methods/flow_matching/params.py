from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class FlowMatchingParams(LossParams):
    title = "Flow matching"
    papers = ("2210.02747", "2501.01423")
    note = "the teachers: LightningDiT, FACM's, SiT; DiT to sample from"
    provenance = {"loss": "paper"}

    name: Literal["flow_matching"] = "flow_matching"
    times: TimeDistribution = TimeDistribution()
    cosine: bool = Field(default=False, description="add 1 - cos(F, v) over channels")
    data: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="start as the teacher, but learn from the data: new classes of a published network",
    )
    expanded: bool = Field(default=False, description="half of the batch conditioned on 2 - t (FACM stage 1)")

    @property
    def follows_data(self) -> bool:
        return self.data
