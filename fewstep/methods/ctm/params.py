from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams, TimeDistribution


class CTMParams(LossParams):
    title = "CTM"
    papers = ("2310.02279",)
    note = "without its adversarial loss"
    provenance = {"loss": "paper", "loss.dsm": "inferred"}  # the paper balances it by norms of gradients
    target_time = True

    name: Literal["ctm"] = "ctm"
    points: int = Field(default=40, gt=1, description="of the grid of t, u and s")
    solver: Literal["heun", "euler"] = "heun"
    solver_steps: int = Field(default=39, gt=0, description="most grid steps from t to u")
    dsm: float = Field(default=1.0, ge=0, description="weight of denoising score matching")
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.507, std=1.2),
        description="of denoising score matching",
    )
    target_decay: float = Field(default=0.999, ge=0, lt=1)
