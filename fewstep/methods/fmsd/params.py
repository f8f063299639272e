from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class FMSDParams(LossParams):
    title = "Flow-map self-distillation"
    papers = ("2505.18825",)
    note = "Lagrangian, Eulerian and progressive"
    provenance = {"loss": "inferred"}  # the equations are the paper's, the constants are not known here
    target_time = True

    name: Literal["fmsd"] = "fmsd"
    objective: Literal["lsd", "esd", "psd"] = Field(
        default="lsd", description="lsd: Lagrangian; esd: Eulerian; psd: progressive"
    )
    times: TimeDistribution = TimeDistribution()
    flow_matching_fraction: float = Field(
        default=0.75, ge=0, le=1, description="share of the batch with s = t, which learns v"
    )
    middle: Literal["half", "uniform"] = Field(
        default="half", description="psd: where the interval is split, half way or uniformly at random"
    )
