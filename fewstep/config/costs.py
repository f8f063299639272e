"""config/costs.yaml: declared throughputs and sizes, from which the plan foretells what targets cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import Strict

Device = Literal["gpu", "cpu"]
Source = Literal["measured", "published", "estimated"]


class Rate(Strict):
    """How much one device does in a second."""

    rate: float = Field(gt=0, description="per second and device")
    device: Device = "gpu"
    source: Source
    note: str = Field(description="where it comes from")


class Size(Strict):
    bytes: float = Field(gt=0, description="on disk")
    source: Source
    note: str = ""


class Costs(Strict):
    """What is not declared shows as unknown and is left out of the sums."""

    start: float = Field(ge=0, description="seconds of a job before its first image")
    encode: dict[str, Rate] = Field(default={}, description="tokenizer -> images (views) encoded")
    decode: dict[str, Rate] = Field(default={}, description="tokenizer -> images decoded")
    train: dict[str, dict[str, Rate]] = Field(
        default={}, description="backbone -> loss -> images trained on, all updates of a step together"
    )
    forward: dict[str, Rate] = Field(default={}, description="backbone -> evaluations of one image")
    score: dict[str, Rate] = Field(default={}, description="extractor -> images")
    assets: dict[str, Size] = Field(default={}, description="asset -> what the download takes")
