"""How a trained network is sampled from where nothing else is asked for: what its model file says of it."""

from __future__ import annotations

from pydantic import Field

from .backbones import Backbone
from .base import Strict
from .settings import Guidance, Sampler


class Choice(Strict):
    """A sampler, and the guidance with which it asks the network."""

    sampler: Sampler
    guidance: Guidance | None = None


class Sampling(Strict):
    """What a network's images depend on beside its weights, its tokenizer and the choices of who samples.

    It is no part of a training's spec: a training does not depend on it.
    """

    title: str
    paper: str = ""
    licence: str = Field(description="of the weights: that of the data, or of published weights")
    samplers: dict[str, Choice] = Field(description="by the number of steps, or `default`")
    expanded: bool = Field(description="as in SampleSpec")
    image: list[int] = Field(min_length=3, max_length=3, description="(C, H, W)")
    uint8: str = Field(description="as in a protocol")
    decoder: Backbone | None = Field(description="network of a trained tokenizer")
    tokenizer_file: str | None = Field(
        description="the tokenizer's weights, relative to the model file's folder in the results"
    )

    def choice(self, steps: int) -> Choice | None:
        """What images in ``steps`` steps are made with; None if nothing is said of them."""
        return self.samplers.get(str(steps)) or self.samplers.get("default")
