from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class AYFParams(LossParams):
    title = "Align Your Flow"
    papers = ("2506.14603",)
    note = "EMD and LMD; no autoguidance, no adversarial stage"
    provenance = {"loss": "paper"}
    target_time = True

    name: Literal["ayf"] = "ayf"
    objective: Literal["emd", "lmd"] = Field(
        default="emd", description="emd: the residual at the left end (Eulerian); lmd: at the right end"
    )
    gaps: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.8, std=1.0),
        description="of s - t; t is uniform on the rest",
    )
    warmup: int = Field(default=10_000, ge=0, description="emd: steps over which the tangent is ramped in")
    rho: float = Field(default=0.99, gt=0, le=1, description="emd: where the ramp ends")
    constant: float = Field(default=0.1, gt=0, description="c of g / (rms(g) + c)")

    def check_schedule(self, train: Train) -> Problems:
        if self.warmup > train.steps:
            yield "warmup", f"{self.warmup} is beyond the {train.steps} training steps"
