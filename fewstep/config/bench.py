"""What is measured of a training step (python -m fewstep.bench train-step)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Strict
from .references import Ref

Formulation = Literal["functorch", "fused", "split", "central"]
Blocks = Literal["plain", "checkpointed", "compiled", "both"]


class Bench(Strict):
    """Cases are all combinations, but for those that a training refuses."""

    methods: Annotated[list[str], Ref("methods")] = Field(
        description="whose complete steps; the first gives networks and precision"
    )
    batches: list[int] = Field(min_length=1, description="images at once, on one device")
    formulations: list[Formulation] = Field(
        default=["functorch", "fused", "split", "central"], description="of the tangent (core/jvp.py)"
    )
    blocks: list[Blocks] = Field(default=["plain", "checkpointed"], min_length=1)
    repeats: int = Field(default=5, gt=0, description="turns of every case")
