from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.backbones import Backbone
from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class TCMParams(LossParams):
    title = "TCM"
    papers = ("2410.14895",)
    note = "both stages"
    provenance = {"loss": "code"}

    name: Literal["tcm"] = "tcm"
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.107, std=1.6), description="of t in stage 1"
    )
    q: float = Field(default=4.0, gt=1, description="stage 1: the step in noise shrinks by this factor ...")
    double: int = Field(default=10_000, gt=0, description="... every so many training steps ...")
    least: float = Field(
        default=1 / 256, gt=0, lt=1, description="... down to this share of the noise level; stage 2 has it"
    )
    huber: float = Field(default=0.00108, gt=0, description="c of the pseudo-Huber loss")
    direction: Literal["data", "teacher"] = Field(
        default="data", description="follow x1 - x0, or the teacher's velocity"
    )
    boundary: float | None = Field(
        default=None, gt=0, lt=1, description="stage 2: only t up to here, against the frozen teacher beyond"
    )
    boundary_share: float = Field(default=0.25, gt=0, lt=1, description="of the rows, at the boundary")
    boundary_weight: float = Field(default=0.1, gt=0)
    tail: float = Field(default=0.02, gt=0, description="width of stage 2's law of ln sigma")

    @model_validator(mode="after")
    def _one_teacher(self) -> TCMParams:
        if self.boundary is not None and self.direction == "teacher":
            raise ValueError("direction: teacher with a boundary: the teacher of stage 2 has no velocity")
        return self

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        first_stage = isinstance(teacher, TCMParams) and teacher.boundary is None
        if self.boundary is not None and not first_stage:
            yield (
                "boundary",
                "needs a first stage: name as teacher a method with loss tcm and no boundary",
            )
