from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone
from ...config.objectives import LossParams, Problems, TimeDistribution
from ...config.settings import Train


class TVMParams(LossParams):
    title = "Terminal velocity matching"
    papers = ("2511.19797",)
    note = "guidance at one scale, not as an input"
    provenance = {"loss": "code", "loss.step": "inferred"}
    target_time = True

    name: Literal["tvm"] = "tvm"
    gaps: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.8, std=1.0), description="of s - t"
    )
    end_times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.4, std=1.0),
        description="of s, among those from s - t on; and of the time at which v is learned",
    )
    scale: float = Field(
        default=2.0, ge=1, description="w, guidance by its own average; a teacher is guided itself"
    )
    target_decay: float | None = Field(
        default=0.99, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
    step: float | None = Field(
        default=5e-3,
        gt=0,
        lt=0.1,
        description="half width of the difference that gives the derivative its gradient; null: it has none",
    )

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if self.end_times.law != "logit-normal":
            yield (
                "end_times.law",
                f"{self.end_times.law}; s is drawn from a part of its law: use logit-normal",
            )
