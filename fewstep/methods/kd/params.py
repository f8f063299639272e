from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams


class KDParams(LossParams):
    title = "KD"
    papers = ("2101.02388",)
    note = "the objective of GET (arXiv 2401.08639) without its network"
    provenance = {"loss": "inferred"}

    name: Literal["kd"] = "kd"
    solver: Literal["heun", "euler"] = "heun"
    solver_steps: int = Field(default=18, gt=0, description="of the teacher's ODE, from noise to data")
