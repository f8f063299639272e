"""config/costs.yaml: throughputs and sizes behind the estimated costs; and what a benchmark measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import Batch, Strict
from .references import Ref

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


class Operations(Strict):
    """Floating-point operations in a second, two for a multiplication with its addition."""

    float32: Rate = Field(description="of one GPU")
    half: Rate = Field(description="of one GPU, in bf16 and fp16")
    core: Rate = Field(description="of one CPU core")


class Costs(Strict):
    """Work of networks that has no rate of its own costs its counted operations at the device's rate."""

    start: float = Field(ge=0, description="seconds of a job before its first image")
    restart: float = Field(
        ge=0,
        description="seconds that a time limit costs a job that goes on in another one: saving, the "
        "queue's own delay, loading, compiling",
    )
    operations: Operations
    read: Rate = Field(description="images read by a tokenizer without a network")
    encode: Annotated[dict[str, Rate], Ref("tokenizers", keys=True)] = Field(
        default={}, description="tokenizer -> images (views) encoded"
    )
    text: dict[Literal["words", "clip", "sd3"], Rate] = Field(
        default={}, description="kind of text encoder -> captions embedded"
    )
    decode: Annotated[dict[str, Rate], Ref("tokenizers", keys=True)] = Field(
        default={}, description="tokenizer -> images decoded"
    )
    train: Annotated[dict[str, dict[str, Rate]], Ref("backbones", keys=True)] = Field(
        default={}, description="backbone -> loss -> images trained on, all updates of a step together"
    )
    forward: Annotated[dict[str, Rate], Ref("backbones", keys=True)] = Field(
        default={}, description="backbone -> evaluations of one image"
    )
    pipelines: Annotated[dict[str, Rate], Ref("assets", keys=True)] = Field(
        default={}, description="asset of a pipeline of diffusers -> evaluations of one image"
    )
    score: Annotated[dict[str, Rate], Ref("extractors", keys=True)] = Field(
        default={}, description="extractor -> images"
    )
    assets: Annotated[dict[str, Size], Ref("assets", keys=True)] = Field(
        default={}, description="asset -> what the download takes"
    )


Formulation = Literal["functorch", "fused", "split", "central"]
Blocks = Literal["plain", "checkpointed", "compiled", "both", "captured", "captured-compiled"]


class Bench(Strict):
    """Training steps to time (fewstep.bench train-step): all combinations that a training does not refuse."""

    methods: Annotated[list[str], Ref("methods")] = Field(
        description="whose complete steps; the first gives networks and precision"
    )
    batches: list[Batch] = Field(min_length=1, description="images at once, on one device")
    formulations: list[Formulation] = Field(
        default=["functorch", "fused", "split", "central"], description="of the tangent (core/jvp.py)"
    )
    blocks: list[Blocks] = Field(default=["plain", "checkpointed"], min_length=1)
    repeats: Batch = Field(default=5, description="turns of every case")
