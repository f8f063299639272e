from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import LossParams


class ClassifierParams(LossParams):
    title = "Classifier"
    note = "the demo's feature extractor"
    kind = "image"

    name: Literal["classifier"] = "classifier"
    noise: float = Field(default=0.1, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)
