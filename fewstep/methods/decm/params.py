from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.objectives import ConsistencyTerms, Problems
from ...config.settings import Train


class DECMParams(ConsistencyTerms):
    title = "DE-CM"
    papers = ("2602.10764",)
    provenance = {
        "loss": "code",
        "loss.times.law": "paper",
        "loss.times.segments": "inferred",  # the paper says N segments; 100 holds every grid of the samplers
        "loss.alpha_power": "inferred",  # the paper has (1 - t) / 2, which it meets at t = 1, as an example
        "loss.norm_power": "paper",
        "loss.fm": "paper",
        "loss.cm": "paper",
        "loss.n2n": "paper",
        "loss.freq": "paper",
        "loss.r_max": "inferred",  # the paper: r -> 0; here U(0, 1 / N)
        # Symbols in the paper; only at 1 and 1 do its Eqs. 14, 15 and Algorithm 1 agree.
        "loss.weight_right": "inferred",
        "loss.weight_left": "inferred",
        "loss.n2n_target": "paper",  # Eq. 13; Algorithm 1 has the interpolant
        "loss.n2n_weight": "inferred",
    }
    target_time = True

    name: Literal["decm"] = "decm"
    fm: bool = True
    cm: bool = True
    n2n: bool = True
    freq: int = Field(default=3, gt=0, description="noise-to-noisy update every freq steps")
    r_max: float = Field(default=0.01, ge=0, lt=1, description="r ~ U(0, r_max)")
    weight_right: float = Field(default=1.0, ge=0, description="lambda, right end")
    weight_left: float = Field(default=1.0, ge=0, description="gamma, left end")
    n2n_target: Literal["psi", "interpolant"] = Field(
        default="psi", description="velocity at the right end: Eq. 13's, or Algorithm 1's"
    )
    n2n_weight: Literal["root", "linear"] = Field(
        default="root", description="w2: 1 - sqrt(1 - (t - r)), or (t - r) / 2"
    )

    @model_validator(mode="after")
    def _possible(self) -> DECMParams:
        if not (self.fm or self.cm or self.n2n):
            raise ValueError("fm, cm and n2n are all off: nothing to train")
        if self.weight_left + self.weight_right == 0:
            raise ValueError("weight_left and weight_right are both 0")
        return self

    def check_schedule(self, train: Train) -> Problems:
        if self.n2n and self.freq > train.steps:
            yield "freq", f"{self.freq} is beyond the {train.steps} training steps"
