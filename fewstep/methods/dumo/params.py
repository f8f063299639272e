from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...config.objectives import EnhancedTarget, TimeDistribution


class DuMoParams(EnhancedTarget):
    title = "DuMo"
    papers = ("2602.17682",)
    note = "abstract and captions; the rest from UCGM (arXiv 2505.07447) and RCGM"
    provenance = {"loss": "inferred"}
    outputs = (2,)
    target_time = False

    name: Literal["dumo"] = "dumo"
    times: TimeDistribution = TimeDistribution()
    direction: Literal["head", "conditional"] = Field(
        default="head", description="along which x_t moves: the velocity head (H), or the sample's v* (C)"
    )
    difference: Literal["one-sided", "central", "tangent"] = Field(
        default="one-sided", description="derivative of the prediction of the data along the path"
    )
    delta: float | None = Field(
        default=0.01, gt=0, lt=1, description="t' = t + delta; central: half the interval"
    )
    ratio: float | None = Field(
        default=None, gt=0, lt=1, description="consistency ratio l instead of delta: t' = 1 - l (1 - t)"
    )
    gain: Literal["unit", "ratio", "sine"] = Field(
        default="unit", description="g(t): 1, 1 - l, or 4 (1 - t) / sin with a cosine weight"
    )
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    weight_u: float = Field(default=1.0, gt=0, description="w_u of the flow-map head's loss")
    huber_v: float | None = Field(default=None, gt=0, description="c of the pseudo-Huber loss; null: squares")
    huber_u: float | None = Field(default=None, gt=0, description="the same of the flow-map head")
    cosine_v: bool = Field(default=False, description="add 1 - cos(v, v*) over channels")
    target_decay: float | None = Field(
        default=None, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )

    @model_validator(mode="after")
    def _one_interval(self) -> DuMoParams:
        given = {name for name in ("delta", "ratio") if getattr(self, name) is not None}
        if self.difference == "tangent" and given:
            raise ValueError("difference: tangent has no interval; set delta and ratio to null")
        if self.difference == "central" and given != {"delta"}:
            raise ValueError("difference: central needs delta, and ratio: null")
        if self.difference == "one-sided" and len(given) != 1:
            raise ValueError("give one of delta, ratio, and set the other to null")
        if self.gain == "ratio" and self.difference != "one-sided":
            raise ValueError("gain: ratio belongs to difference: one-sided")
        return self
