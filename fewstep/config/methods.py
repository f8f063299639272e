"""The entries of config/methods/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field

from ..methods import parameter_classes
from .base import Steps, Strict
from .objectives import LossParams
from .references import Ref
from .settings import Mark

if TYPE_CHECKING:
    AnyLossParams = LossParams
else:
    AnyLossParams = Annotated[Union[tuple(parameter_classes().values())], Field(discriminator="name")]  # noqa: UP007


class Published(Strict):
    """A network's published weights, and what its authors made them for."""

    asset: Annotated[str, Ref("assets")]
    file: Annotated[str, Ref("files of", within="asset")] = Field(description="which file of the asset")
    tokenizer: Annotated[str, Ref("tokenizers")] = Field(
        description="of the latents that they were trained on"
    )
    reverse: bool = Field(
        default=False, description="their t is 1 at noise, and their velocity noise - data: converted"
    )
    sampler: Annotated[str | None, Ref("samplers")] = Field(
        default=None, description="sampler that their authors evaluate them with"
    )


class Method(Strict):
    """One entry of config/methods/. ``train`` and ``guidance`` hold what differs from the recipe."""

    title: str
    paper: str = ""
    recipe: Annotated[str, Ref("recipes")]
    loss: AnyLossParams = Field(
        description="of a method in fewstep/methods: its name, and what differs from its defaults"
    )
    teacher: Annotated[bool | str, Ref("methods")] = Field(
        default=True, description="learn from, and start as, the recipe's teacher, or the method named here"
    )
    weights: Published | None = Field(
        default=None, description="adopt these published weights instead of training"
    )
    released: Published | None = Field(
        default=None, description="the same, but only when the whole workflow runs with weights=released"
    )
    train: dict[str, Any] = {}
    guidance: dict[str, Any] = {}
    backbone: Annotated[str | None, Ref("backbones")] = Field(
        default=None, description="instead of the recipe's"
    )
    samplers: Annotated[dict[Steps | Literal["default"], str], Ref("samplers")] = Field(
        default={}, description="sampler for each number of steps"
    )
    provenance: dict[str, Mark] = Field(
        default={},
        description="mark of a hyper-parameter, or of all below a key: loss, loss.times, train.steps; "
        "params.py marks the defaults of the loss",
    )


class Variant(Strict):
    """What a table row may change in a method: an ablation."""

    loss: dict[str, Any] = {}
    train: dict[str, Any] = {}
    guidance: dict[str, Any] = {}
    weights: dict[str, Any] | None = None
