from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ...config.backbones import Backbone, LightningDiT
from ...config.base import Count, Strict
from ...config.objectives import LossParams, Problems, WithPlayers, completed
from ...config.settings import Optimizer, Train


class ClassifierGuidance(Strict):
    """Cross-entropy of a classifier of noisy samples at what the generator makes."""

    weight: float = Field(default=0.003, gt=0, description="of the cross-entropy in the generator's loss")
    renoise: bool = Field(
        default=True,
        description="classify what is made with new noise, at a time drawn from times; false: as it is",
    )
    times: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        default=[0.9, 1.0], min_length=2, max_length=2, description="t of what is classified"
    )
    start: int = Field(default=0, ge=0, description="steps before the generator follows the classifier")
    optimizer: Optimizer = Field(
        default=Optimizer(lr=1.0e-4, betas=[0.9, 0.95], weight_decay=0.01, clip=50.0),
        description="of the classifier",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, raw: Any) -> Any:
        """An optimizer that says only what differs from the default."""
        if not isinstance(raw, Mapping):
            return raw
        default = cls.model_fields["optimizer"].default
        return {**raw, "optimizer": completed(raw.get("optimizer", {}), default)}

    @model_validator(mode="after")
    def _rises(self) -> ClassifierGuidance:
        if self.times[0] >= self.times[1]:
            raise ValueError(f"times {self.times} must rise")
        return self


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

    classifier: ClassifierGuidance | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="guide the generator by a classifier, which is trained beside it; null: no guidance",
    )

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        guide = {} if self.classifier is None else {"classifier": self.classifier.optimizer}
        return self.players | guide

    @property
    def follows_data(self) -> bool:
        return True

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if not isinstance(backbone, LightningDiT):
            yield "players", f"there is a discriminator of a lightningdit alone, not of a {backbone.kind}"
        elif self.classifier is not None and backbone.classes == 1:
            yield "classifier", "of one class there is nothing to tell apart; set classifier: null"

    def check_schedule(self, train: Train) -> Problems:
        if self.classifier is not None and self.classifier.start >= train.steps:
            yield "classifier.start", f"{self.classifier.start} is not below the {train.steps} training steps"
