from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import RecursiveTerms


class TwinFlowParams(RecursiveTerms):
    title = "TwinFlow"
    papers = ("2512.05150",)
    provenance = {
        "loss": "paper",
        "loss.delta": "code",
        "loss.clip": "code",
        "loss.target_warmup": "code",
    }

    name: Literal["twinflow"] = "twinflow"
    target_decay: float | None = Field(
        default=0.99, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
    target_warmup: bool = Field(default=True, description="approach that decay from 0")
    share: float = Field(
        default=1 / 3, ge=0, le=1, description="lambda, rows for L_adv and L_rectify; 0 is RCGM"
    )
    rectify_weight: float = Field(default=1.0, ge=0, description="of L_rectify; the release has 0.5")
    rectify_clamp: float | None = Field(
        default=None, gt=0, description="elementwise bound of v_real - v_fake; the release has 1"
    )
    base_everywhere: bool = Field(default=False, description="RCGM's loss on the generator's rows too")
    metric: Literal["squared", "barron"] = "squared"
    metric_constant: float = Field(default=1e-3, gt=0, description="c of barron")
    time_weight: bool = Field(
        default=False, description="weight RCGM's loss by tan((1 - (s - t)) pi / 2.5) + 1"
    )
