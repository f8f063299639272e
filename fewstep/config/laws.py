"""What several objectives are made of: laws of training times, and targets with guidance in them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Strict


class TimeDistribution(Strict):
    """Distribution of the training time t in [0, 1]."""

    law: Literal["uniform", "segments", "arctan", "logit-normal", "beta"] = "uniform"
    segments: int | None = Field(default=None, gt=1, description="segments: t on {0, 1/N .. (N-1)/N}")
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)
    alpha: float | None = Field(
        default=None, gt=0, description="beta: density t^(alpha - 1) (1 - t)^(beta - 1)"
    )
    beta: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> TimeDistribution:
        normal = self.law in ("arctan", "logit-normal")
        if (self.law == "segments") != (self.segments is not None):
            raise ValueError("segments belongs to, and is needed by, law: segments")
        if normal != (self.mean is not None) or normal != (self.std is not None):
            raise ValueError("mean and std belong to, and are needed by, arctan and logit-normal")
        if any((self.law == "beta") != (given is not None) for given in (self.alpha, self.beta)):
            raise ValueError("alpha and beta belong to, and are needed by, law: beta")
        return self


class Enhancement(Strict):
    """Guidance mixed into the velocity to learn from (core/enhanced.py; UCGM, arXiv 2505.07447)."""

    reference: Literal["teacher", "own"] = Field(
        default="teacher", description="whose prediction: a frozen multi-step teacher's, or one's own"
    )
    zeta: float = Field(description="weight of the reference from time start on")
    start: float = Field(default=0.25, ge=0, le=1, description="time below which zeta gives way to beyond")
    beyond: float = Field(default=0.5, ge=0, le=1, description="weight of the reference below start")
