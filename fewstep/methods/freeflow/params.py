from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone
from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class FreeFlowParams(LossParams):
    title = "FreeFlow"
    papers = ("2511.19428",)
    note = "no data; its online network is the student itself, under another condition"
    provenance = {"loss": "inferred", "loss.share": "paper", "loss.norm_power": "paper"}
    target_time = True

    name: Literal["freeflow"] = "freeflow"
    share: float = Field(default=0.25, ge=0, lt=1, description="of the rows, for the correction")
    lengths: TimeDistribution = Field(
        default=TimeDistribution(), description="of s, where a jump from the noise ends"
    )
    noise_levels: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.8, std=1.0),
        description="correction: of the time to which a sample is noised",
    )
    norm_power: float = Field(default=1.0, ge=0, le=1, description="k: how much large differences weigh less")
    norm_constant: float = Field(default=1e-2, gt=0)
    correction: float = Field(default=1.0, ge=0, description="alpha, weight of the correction")

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if teacher is None:
            yield "", "freeflow learns from a teacher alone; name one as teacher"
