from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import EnhancedTarget, FollowedTarget, TimeDistribution


class UCGMParams(FollowedTarget, EnhancedTarget):
    title = "UCGM"
    papers = ("2505.07447",)
    provenance = {
        "loss": "paper",
        "loss.huber": "code",
        "loss.cosine": "code",
        "loss.target_decay": "code",
        "loss.target_warmup": "code",
    }

    name: Literal["ucgm"] = "ucgm"
    times: TimeDistribution = TimeDistribution(law="beta", alpha=1.0, beta=0.8)
    ratio: float = Field(
        default=1.0, ge=0, le=1, description="consistency ratio lambda: 0 flow matching, 1 consistency"
    )
    epsilon: float = Field(default=0.005, gt=0, lt=1, description="ratio 1: half the difference's interval")
    gain: Literal["sine", "unit", "ratio"] = Field(
        default="sine", description="g(t): 4 (1 - t) / sin with a cosine weight, 1, or 1 - lambda"
    )
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    huber: float | None = Field(
        default=5.0, ge=0, description="c of the pseudo-Huber loss; 0: root of the mean square; null: squares"
    )
    cosine: bool = Field(default=False, description="add 1 - cos(u, target) over channels")
