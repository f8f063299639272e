from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class SCMParams(LossParams):
    title = "sCM"
    papers = ("2410.11081",)
    note = "as re-run by DE-CM"
    provenance = {"loss": "paper", "loss.times": "code"}

    name: Literal["scm"] = "scm"
    times: TimeDistribution = TimeDistribution(law="arctan", mean=-0.8, std=1.6)
    warmup: int = Field(default=10_000, ge=0, description="steps over which the tangent is ramped in")
    constant: float = Field(default=0.1, gt=0, description="c of g / (rms(g) + c)")
    learned_weight: bool = Field(default=True, description="uncertainty weight w(t), trained jointly")

    def check_schedule(self, train: Train) -> Problems:
        if self.warmup > train.steps:
            yield "warmup", f"{self.warmup} is beyond the {train.steps} training steps"
