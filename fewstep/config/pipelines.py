"""Released text-to-image models as pipelines of diffusers: sampled from and scored, never trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Size, Steps, Strict, merge
from .references import Ref

SAMPLER = "own-scheduler"
"""Name of the sampler that means a pipeline's own scheduler."""
NEVER_RUN = "Released weights: never run on the real weights."
"""Note of a row whose pipeline is not `tried`."""

PipelineClass = Literal[
    "StableDiffusion3Pipeline",
    "StableDiffusionXLPipeline",
    "SanaSprintPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
]
TWO_TIMES: tuple[PipelineClass, ...] = ("QwenImagePipeline", "ZImagePipeline")
"""Pipelines whose network may have TwinFlow's embedding of a second time."""
ONE_SCALE_MORE: tuple[PipelineClass, ...] = ("ZImagePipeline",)
"""Pipelines whose guidance adds `scale` differences to the conditional prediction: 0 is none, not 1."""
EMBEDDED: tuple[PipelineClass, ...] = ("SanaSprintPipeline",)
"""Pipelines whose network is given the scale of guidance, and evaluated once."""


class Adapter(Strict):
    """Low-rank adapters of a pipeline's networks."""

    asset: Annotated[str, Ref("assets")]
    file: Annotated[str, Ref("files of", within="asset")] = Field(pattern=r"\.safetensors$")
    scale: float = Field(default=1.0, gt=0, le=10)
    fuse: bool = Field(default=True, description="add them to the weights, as their authors do")


class Scheduler(Strict):
    """A scheduler instead of the pipeline's own; options that are not given are as in the folder."""

    name: Literal[
        "FlowMatchEulerDiscreteScheduler",
        "DDIMScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "SCMScheduler",
        "restart",
    ] = Field(description="a class of diffusers; restart: flow matching with fresh noise after every step")
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    shift: float | None = Field(default=None, gt=0, description="of flow matching's times")
    use_dynamic_shifting: bool | None = Field(default=None, description="shift by the number of tokens")

    @property
    def options(self) -> dict[str, Any]:
        """What is given."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class DiffusersPipeline(Strict):
    """A folder of diffusers, and how its authors sample from it."""

    name: PipelineClass = Field(description="class of diffusers")
    asset: Annotated[str, Ref("assets")]
    folder: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$",
        description="inside of the asset",
    )
    adapters: list[Adapter] = []
    scheduler: Scheduler | None = None
    guidance: float = Field(
        default=0.0, ge=0, le=100, description="scale, as the pipeline's call takes it; Qwen's true_cfg_scale"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    image: Size = Field(description="pixels of a side")
    steps: list[Steps] = Field(default=[], description="that it is made for; at others a warning stands")
    eta: float | None = Field(default=None, ge=0, le=1, description="StableDiffusionXLPipeline's")
    timesteps: list[int] | None = Field(default=None, description="instead of the scheduler's, one a step")
    sigmas: list[Annotated[float, Field(gt=0, le=1)]] | None = Field(
        default=None, description="noise levels instead of the scheduler's, one a step"
    )
    max_sequence_length: Size | None = Field(default=None, description="tokens of the (last) text encoder")
    second_time: bool = Field(
        default=False, description="the network has TwinFlow's embedding of a second time, whose value is 0"
    )
    at: dict[Steps, dict[str, Any]] = Field(default={}, description="what differs at a number of steps")
    tried: bool = Field(
        default=False, description="the real weights have been through this workflow; else a note says not"
    )

    @model_validator(mode="after")
    def _possible(self) -> DiffusersPipeline:
        xl = self.name == "StableDiffusionXLPipeline"
        if self.second_time and self.name not in TWO_TIMES:
            raise ValueError(f"second_time is for {', '.join(TWO_TIMES)}")
        if not xl and (self.eta is not None or self.timesteps is not None):
            raise ValueError("eta and timesteps are for StableDiffusionXLPipeline")
        if self.sigmas is not None and self.name == "SanaSprintPipeline":
            raise ValueError("sigmas are not for SanaSprintPipeline")
        if xl and self.max_sequence_length is not None:
            raise ValueError("max_sequence_length is not for StableDiffusionXLPipeline")
        if self.image % 8:
            raise ValueError(f"image: {self.image} is no multiple of 8")
        for steps, changes in self.at.items():
            if {"at", "tried", "name", "image"} & changes.keys():
                raise ValueError(f"at.{steps}: at, tried, name and image are the same at every step")
        return self

    @property
    def evaluations_per_step(self) -> int:
        """Of the network, for one image: two with guidance that the network does not know itself."""
        if self.name in EMBEDDED:
            return 1
        return 2 if self.guidance > (0 if self.name in ONE_SCALE_MORE else 1) else 1

    @property
    def assets(self) -> list[str]:
        """The pipeline's, then its adapters', each once."""
        return list(dict.fromkeys([self.asset, *(adapter.asset for adapter in self.adapters)]))

    def raw_at(self, steps: int) -> dict[str, Any]:
        """The same for one number of steps, as a file would say it: `at` is laid over it and gone."""
        plain = self.model_dump(exclude_unset=True, exclude={"at", "tried"})
        return merge(plain, self.at.get(steps, {}))  # type: ignore[no-any-return]

    def check_steps(self, steps: int) -> str:
        """What is wrong with sampling in so many steps; empty where nothing is."""
        for key, values in (("timesteps", self.timesteps), ("sigmas", self.sigmas)):
            if values is not None and len(values) != steps:
                return f"{key} has {len(values)} values, for {len(values)} steps, not {steps}"
        return ""
