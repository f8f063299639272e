from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.base import Size
from ...config.objectives import Problems, TimeDistribution, WithPlayers
from ...config.settings import Optimizer, Train


class SCFDParams(WithPlayers):
    title = "Self-corrected flow distillation"
    papers = ("2412.16906",)
    note = "its discriminator on latents, without labels"
    provenance = {"loss": "code"}
    target_time = False

    name: Literal["scfd"] = "scfd"
    times: TimeDistribution = Field(default=TimeDistribution(), description="of t")
    target_decay: float = Field(default=0.9, ge=0, lt=1, description="of the average that gives targets")
    step: float = Field(default=0.1, gt=0, le=1, description="longest step along the teacher")
    data_from: float = Field(
        default=0.6, ge=0, le=1, description="a step that ends beyond this time has the data as its target"
    )
    huber: float = Field(default=0.01, gt=0, description="c of the elementwise pseudo-Huber distance")
    backward_weight: float = Field(default=0.1, ge=0, description="of the step towards the noise")
    reflow_weight: float = Field(default=0.1, ge=0, description="of the regression on own one-step samples")
    adversarial_weight: float = Field(default=0.1, ge=0, description="of the generator's loss")
    warmup: int = Field(
        default=1000,
        ge=0,
        description="training steps without the step towards the noise, and without reflow",
    )
    gradient_penalty: float = Field(default=1.0, ge=0, description="gamma of R1")
    channels: Size = Field(
        default=16384, description="of the discriminator: a block at side n has so many divided by n ..."
    )
    largest: Size = Field(default=512, description="... and no more than these")
    players: dict[str, Optimizer] = {"discriminator": Optimizer(lr=1e-4, clip=None)}
    group: Size = Field(default=4, description="rows whose spread the discriminator sees")

    def check_schedule(self, train: Train) -> Problems:
        if train.global_batch_size % self.group:
            yield (
                "group",
                f"{self.group} does not divide train.global_batch_size {train.global_batch_size}",
            )
