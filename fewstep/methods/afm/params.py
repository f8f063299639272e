from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone, LightningDiT
from ...config.base import Count
from ...config.objectives import LossParams, Problems, WithPlayers
from ...config.settings import Optimizer, Train


class AFMParams(WithPlayers):
    title = "AFM"
    papers = ("2511.22475",)
    note = "adversarial; no derivative, no teacher"
    provenance = {"loss": "code", "loss.transport_steps": "inferred"}
    target_time = True

    name: Literal["afm"] = "afm"
    players: dict[str, Optimizer] = Field(
        default={"discriminator": Optimizer(lr=1.0e-4, betas=[0.0, 0.9], weight_decay=0.01, clip=5.0)},
        description="optimizer of the discriminator",
    )
    steps: Count | None = Field(
        default=None,
        description="learn the jumps of that many equal steps alone; null: jumps between any times",
    )
    penalty: float = Field(default=0.25, ge=0, description="weight of the gradient penalties R1 and R2")
    penalty_share: float = Field(default=0.25, gt=0, le=1, description="share of the rows that have them")
    penalty_step: float = Field(default=0.01, gt=0, description="deviation of the noise of their difference")
    centring: float = Field(default=0.01, ge=0, description="weight of the mean of both logits, squared")
    transport: float = Field(default=0.25, ge=0, description="weight of the squared distance moved, at first")
    transport_end: float = Field(default=0.005, ge=0, description="the same after transport_steps")
    transport_steps: Count = Field(default=500_000, description="steps of its cosine from first to last")
    shortest: float = Field(default=1.0e-3, gt=0, description="least s - t that terms are weighted by")
    gradient_decay: float = Field(
        default=0.9, ge=0, lt=1, description="of the average that the discriminator's gradient is divided by"
    )

    @property
    def follows_data(self) -> bool:
        return True

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if not isinstance(backbone, LightningDiT):
            yield "players", f"there is a discriminator of a lightningdit alone, not of a {backbone.kind}"
