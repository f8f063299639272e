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
    """Prompts to sample from, in files of an asset, one after the other."""

    asset: Annotated[str, Ref("assets")]
    files: Annotated[list[str], Ref("files of", within="asset")] = Field(min_length=1)
    format: Literal["jsonl", "json", "dpg-csv"] = Field(
        default="jsonl",
        description="jsonl: an object with a key `prompt` on each line; json: a list of prompts, or of such "
        "objects; dpg-csv: DPG-Bench's table of questions, several lines a prompt",
    )
    prompts: Count = Field(description="exact number of prompts; anything else is refused")


ScorerKind = Literal["clip", "pickscore", "hps", "blip", "image-reward", "cells", "mask2former", "questions"]
SCORERS: dict[str, tuple[ScorerKind, ...]] = {
    "clip": ("clip",),
    "blip": ("blip",),
    "image_reward": ("image-reward",),
    "pickscore": ("pickscore",),
    "hps": ("hps",),
    "geneval": ("cells", "mask2former"),
    "dpg": ("questions",),
    "geneval2": ("questions",),
}
"""Scorer by the name of its metrics -> the kinds of network that may compute it."""
ScorerName = Literal["clip", "blip", "image_reward", "pickscore", "hps", "geneval", "dpg", "geneval2"]
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
    "geneval2",
    "geneval2_atoms",
    "dpg",
    "dpg_global",
    "dpg_entity",
    "dpg_attribute",
    "dpg_relation",
    "dpg_other",
    "clip",
    "clip_seen",
    "clip_held_out",
    "blip",
    "image_reward",
    "pickscore",
    "hps",
]
PROMPT_METRICS: tuple[str, ...] = get_args(PromptMetric)
"""What is computed from images and their prompts; seen and held_out: by whether training had the caption,
over the tasks of which there are both."""


LikelihoodMetric = Literal["bpd"]
"""Bits per dimension: - log2 p / (C H W) of images in 8 bits, dequantised by uniform noise."""


def split_metric(metric: str) -> tuple[str, str]:
    """Name of the scorer, and the part of the images or questions that a metric is over, empty for all."""
    name = max((name for name in SCORERS if f"{metric}_".startswith(f"{name}_")), key=len)
    return name, metric[len(name) + 1 :]


OF_OTHERS: tuple[ScorerKind, ...] = ("pickscore", "hps", "blip", "image-reward")
"""Published networks whose authors publish no tokenizer with them."""
PUBLISHED: tuple[ScorerKind, ...] = ("mask2former", "questions")
"""Networks that are not trained here, nor could be."""


class Scorer(Strict):
    """A network that scores images with their prompts."""

    kind: ScorerKind = Field(
        description="clip: cosine of image and prompt; pickscore, hps: the same, of CLIPs tuned on choices "
        "of people; blip: cosine by BLIP; image-reward: a reward by BLIP; cells, mask2former: detectors for "
        "GenEval, of the cells of a scene and of COCO's objects; questions: a model that answers questions "
        "about images"
    )
    weights: Weights
    tokenizer: Weights | None = Field(
        default=None,
        description="blip, image-reward: BERT's vocabulary; pickscore, hps: a file beside the tokenizer and "
        "the image processor of a CLIP, and for hps its config.json",
    )
    colours: Weights | None = Field(default=None, description="mask2former: the CLIP that names colours")

    @property
    def files(self) -> dict[str, Weights]:
        """All that it is made of, by key, in the order in which it is given to the stage that scores."""
        parts = {"weights": self.weights, "tokenizer": self.tokenizer, "colours": self.colours}
        return {key: given for key, given in parts.items() if given is not None}

    @model_validator(mode="after")
    def _complete(self) -> Scorer:
        if self.kind == "cells" and self.weights.method is None:
            raise ValueError("weights: kind: cells must be of a method that is trained here")
        if (self.colours is not None) != (self.kind == "mask2former"):
            raise ValueError("colours belongs to, and is needed by, kind: mask2former")
        if self.kind in PUBLISHED and not all(given.asset for given in self.files.values()):
            raise ValueError(f"weights and colours of kind: {self.kind} must be of assets")
        if (self.tokenizer is not None) != (self.kind in OF_OTHERS):
            raise ValueError(f"tokenizer belongs to, and is needed by, kind: {', '.join(OF_OTHERS)}")
        if self.kind in OF_OTHERS and not all(given.asset for given in self.files.values()):
            raise ValueError(f"weights and tokenizer of kind: {self.kind} must be of assets")
        return self


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
    def files(self) -> list[Weights]:
        """All that its scorers are made of, by their names, in the order of the stage that scores."""
        return [given for name in sorted(self.scorers) for given in self.scorers[name].files.values()]

    @property
    def labels(self) -> Literal["balanced"]:
        """Prompts come in turn."""
        return "balanced"

    @model_validator(mode="after")
    def _scorers(self) -> PromptProtocol:
        for name, scorer in self.scorers.items():
            if scorer.kind not in SCORERS[name]:
                raise ValueError(f"scorers.{name}.kind: {scorer.kind} is of another scorer")
        for metric in self.metrics:
            if split_metric(metric)[0] not in self.scorers:
                raise ValueError(f"metrics: {metric} needs scorers.{split_metric(metric)[0]}")
        return self


class LikelihoodProtocol(Precision):
    """All that likelihoods of real images depend on beside the cell's sampler.

    The sampler carries the images to the noise: ``jump`` with the network's own average divergence, its
    output ``scalar``; ``euler`` along its velocity, with the velocity's divergence.
    """

    kind: Literal["likelihood"]
    metrics: list[LikelihoodMetric] = Field(default=["bpd"], min_length=1, max_length=1)
    real_latents: Annotated[str, Ref("latents")] = Field(description="the images, as pixels")
    images: Count = Field(description="the first ones of these")
    trace: Literal["probe", "exact"] = Field(
        description="euler: divergence along random signs, drawn anew in each step, or exact: a tangent for "
        "each number of an image"
    )
    seed: Seed = Field(default=0, description="of dequantisation and probes")


SampledProtocol = Protocol | PromptProtocol
"""Of metrics of sampled images."""
AnyProtocol = Annotated[Protocol | PromptProtocol | LikelihoodProtocol, Field(discriminator="kind")]
