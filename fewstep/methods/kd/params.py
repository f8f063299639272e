from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone, FlowNetwork, Get
from ...config.objectives import LossParams, Problems
from ...config.settings import Train


class KDParams(LossParams):
    title = "KD"
    papers = ("2101.02388",)
    note = "on backbone `get`, over its iterates: GET (arXiv 2401.08639)"
    provenance = {"loss": "inferred"}
    one_step = True

    name: Literal["kd"] = "kd"
    solver: Literal["heun", "euler"] = "heun"
    solver_steps: int = Field(default=18, gt=0, description="of the teacher's ODE, from noise to data")
    solver_times: Literal["even", "karras"] = Field(
        default="even", description="karras: EDM's noise levels and variables (arXiv 2206.00364, Algorithm 1)"
    )
    sigma: list[float] = Field(
        default=[0.004, 160.0],
        min_length=2,
        max_length=2,
        description="karras: least and greatest noise level, (1 - t) / t",
    )
    distance: Literal["l2", "l1"] = Field(default="l2", description="mean square, or mean absolute value")
    iterate_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="backbone get: sum the distances of its iterates, each weighted by this for every "
        "iteration that follows; null: the last alone",
    )

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if self.iterate_decay is not None and not isinstance(backbone, Get):
            yield "iterate_decay", f"needs a backbone of kind get, which iterates, not {backbone.kind}"
        if teacher is None and isinstance(backbone, FlowNetwork) and not backbone.timed:
            yield (
                "",
                f"needs a teacher: a backbone of kind {backbone.kind} has no velocity of its own to solve",
            )
        if not 0 < self.sigma[0] < self.sigma[1]:
            yield "sigma", f"{self.sigma} must rise from above 0"
        if self.solver_times == "karras" and self.solver_steps < 2:
            yield "solver_steps", "karras needs at least 2"
