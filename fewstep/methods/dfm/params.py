from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...config.backbones import Backbone, FlowNetwork
from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class DFMParams(LossParams):
    title = "Decomposable flow matching"
    papers = ("2506.19839",)
    note = "a time for each scale; many steps"
    provenance = {"loss": "paper"}
    target_time = False
    pyramid = True

    name: Literal["dfm"] = "dfm"
    stages: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.9, 0.1], min_length=2, description="share of the batch of which each scale is the last"
    )
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.0, std=1.0), description="of the last scale"
    )
    earlier: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=1.5, std=1.0),
        description="of the scales before it, which are nearly data",
    )

    @model_validator(mode="after")
    def _whole(self) -> DFMParams:
        if abs(sum(self.stages) - 1) > 1e-9:
            raise ValueError(f"stages {self.stages} must sum to 1")
        return self

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        scales = backbone.scale_count if isinstance(backbone, FlowNetwork) else 1
        if scales != len(self.stages):
            yield "stages", f"{len(self.stages)} shares, but the backbone has scales: {scales}"
        if teacher is not None:
            yield "", "learns from the data alone; set teacher: false"
