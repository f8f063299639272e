from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.backbones import Backbone, FlowNetwork
from ...config.objectives import ConsistencyTerms, LossParams, Problems, TimeDistribution
from ...config.settings import Train


class FACMParams(ConsistencyTerms):
    title = "FACM"
    papers = ("2507.03738",)
    provenance = {"loss": "code", "loss.anchor": "paper"}

    name: Literal["facm"] = "facm"
    times: TimeDistribution = TimeDistribution(law="arctan", mean=-0.8, std=1.6)
    anchor: Literal["expanded", "target"] = Field(
        default="expanded", description="flow-matching condition: time 2 - t, or target time s = t"
    )

    @property
    def velocity_at_expanded_time(self) -> bool:
        return self.anchor == "expanded"

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if self.anchor == "target" and isinstance(backbone, FlowNetwork) and not backbone.target_time:
            yield "anchor", "target needs a backbone with target_time: true"
        if self.anchor == "expanded" and teacher is not None and not getattr(teacher, "expanded", False):
            yield (
                "anchor",
                "expanded needs a teacher with loss.expanded: true; choose anchor: target, or a recipe with "
                "another teacher",
            )
