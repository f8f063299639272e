from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, Problems
from ...config.settings import Train


class IMMParams(LossParams):
    title = "IMM"
    papers = ("2503.07565",)
    provenance = {"loss": "paper"}
    target_time = True

    name: Literal["imm"] = "imm"
    particles: int = Field(default=4, gt=0, description="M: rows of a group, which share their times")
    first: float = Field(default=0.006, gt=0, lt=1, description="earliest t; the latest is the data")
    decrement: Literal["noise", "time"] = Field(
        default="noise", description="what r differs from t by a constant in: (1 - t) / t, or t"
    )
    step: float = Field(default=160 / 2**12, gt=0, description="that constant")
    power: float = Field(default=2.0, ge=1, description="a of the weight")
    shift: float = Field(default=4.0, description="b of the weight")

    def check_schedule(self, train: Train) -> Problems:
        if train.global_batch_size % self.particles:
            yield (
                "particles",
                f"train.global_batch_size {train.global_batch_size} does not divide into groups of "
                f"{self.particles}",
            )
