"""Captions as conditions: text encoders, sets of prompts, and protocols that score images with prompts.

A caption is an index: the label y of an image is the number of its caption in a list. A text store holds the
embeddings of one list by one encoder, and behind them those of the empty caption, the null label.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from .base import Count, Seed, Size, Strict
from .references import Ref
from .settings import Dtype, Precision, Protocol, Weights

IN_MEMORY = 256 << 20
"""Text stores up to this size, in bytes, are hashed at opening and live on the device as a whole; of live
embeddings so much is kept."""


class TextEncoder(Strict):
    kind: Literal["words", "clip", "sd3"] = Field(
        description="words: numbers of whole words, which a CLIP that is trained here starts from; clip: "
        "such a CLIP in the place of both of SD3's, without T5; sd3: the two CLIPs and the T5 of a diffusers "
        "folder"
    )
    weights: Weights | None = Field(default=None, description="clip: a method; sd3: an asset; words: none")
    length: Size = Field(default=77, description="tokens for CLIP, with start and end")
    t5_length: Size = Field(default=256, description="tokens for T5; without T5 as many rows of zeros")
    dtype: Dtype = Field(default="bfloat16", description="of the stored embeddings")

    @model_validator(mode="after")
    def _complete(self) -> TextEncoder:
        given = self.weights and ("method" if self.weights.method else "asset")
        wanted = {"words": None, "clip": "method", "sd3": "asset"}[self.kind]
        if given != wanted:
            raise ValueError(f"kind: {self.kind} needs weights: {wanted or 'none'}, not {given or 'none'}")
        return self


class PromptSet(Strict):
    """Prompts to sample from: a file of an asset, one JSON object with a key `prompt` on each line."""

    asset: Annotated[str, Ref("assets")]
    file: Annotated[str, Ref("files of", within="asset")]
    prompts: Count = Field(description="exact number of lines; anything else is refused")


PromptMetric = Literal[
    "geneval",
    "geneval_single_object",
    "geneval_two_object",
    "geneval_counting",
    "geneval_colors",
    "geneval_position",
    "geneval_color_attr",
    "geneval_seen",
    "geneval_held_out",
    "clip",
    "clip_seen",
    "clip_held_out",
]
PROMPT_METRICS: tuple[str, ...] = get_args(PromptMetric)
"""What is computed from images and their prompts; seen and held_out: by whether training had the caption,
over the tasks of which there are both."""


class Scorer(Strict):
    """A network that scores images with their prompts."""

    kind: Literal["clip", "cells"] = Field(
        description="clip: cosine of image and prompt; cells: objects in the cells of a scene, for GenEval"
    )
    weights: Weights


ScorerName = Literal["clip", "geneval"]
SCORERS: tuple[str, ...] = get_args(ScorerName)


class PromptProtocol(Precision):
    """All that scores of images with prompts depend on beside the images' own sampler.

    Image i shows prompt i modulo the number of prompts.
    """

    kind: Literal["prompt-scores"]
    prompts: Annotated[str, Ref("prompts")]
    images: Count = Field(description="a multiple of the number of prompts")
    scorers: dict[ScorerName, Scorer] = Field(min_length=1)
    metrics: list[PromptMetric] = Field(min_length=1)
    uint8: Literal["round", "truncate"] = "round"
    seed: Seed = 0

    @property
    def labels(self) -> Literal["balanced"]:
        """Prompts come in turn."""
        return "balanced"

    @model_validator(mode="after")
    def _scorers(self) -> PromptProtocol:
        for name, scorer in self.scorers.items():
            if (name == "clip") != (scorer.kind == "clip"):
                raise ValueError(f"scorers.{name}.kind: {scorer.kind} is of another scorer")
            if scorer.kind == "cells" and scorer.weights.method is None:
                raise ValueError(f"scorers.{name}.weights: must be of a method that is trained here")
        for metric in self.metrics:
            if metric.partition("_")[0] not in self.scorers:
                raise ValueError(f"metrics: {metric} needs scorers.{metric.partition('_')[0]}")
        return self


AnyProtocol = Annotated[Protocol | PromptProtocol, Field(discriminator="kind")]
