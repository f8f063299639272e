from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class MeanFlowParams(LossParams):
    title = "MeanFlow"
    papers = ("2505.13447",)
    note = "as re-run by DE-CM; from data, guiding itself, as `meanflow-data`"
    provenance = {"loss": "code"}  # of FACM, which has the re-run
    target_time = True

    name: Literal["meanflow"] = "meanflow"
    times: TimeDistribution = TimeDistribution(law="arctan", mean=-0.8, std=1.6)
    flow_matching_fraction: float = Field(
        default=0.0, ge=0, le=1, description="share of the batch with s = t"
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(default=1e-3, gt=0)
    omega: float = Field(
        default=1.0, gt=0, description="own guidance: weight of the velocity followed; 1: none ..."
    )
    kappa: float = Field(
        default=0.0, ge=0, lt=1, description="... of the network's conditional one; the rest has no label"
    )
    guided: list[float] = Field(
        default=[0.0, 1.0], min_length=2, max_length=2, description="times at which it guides itself"
    )
