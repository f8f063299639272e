from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone
from ...config.base import Batch
from ...config.objectives import LossParams, Problems
from ...config.settings import Train


class ContrastParams(LossParams):
    title = "CLIP"
    papers = ("2103.00020",)
    note = "the demo's text encoder and score"
    kind = "image"

    name: Literal["contrast"] = "contrast"
    group: Batch = Field(default=64, gt=1, description="rows that are told from each other")

    def check_schedule(self, train: Train) -> Problems:
        if train.global_batch_size % self.group:
            yield (
                "group",
                f"train.global_batch_size {train.global_batch_size} does not divide into groups of "
                f"{self.group}",
            )

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if backbone.kind != "clip":
            yield "name", f"contrast trains a backbone of kind: clip, not {backbone.kind}"
