"""The entries of config/methods/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from ..methods import parameter_classes
from .base import Count, Seed, Steps, Strict
from .objectives import LossParams
from .pipelines import DiffusersPipeline
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
    new_labels: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="they know other classes: the embeddings of ours start at random, to be trained",
    )
    sampler: Annotated[str | None, Ref("samplers")] = Field(
        default=None, description="sampler that their authors evaluate them with"
    )


class Reembed(Strict):
    """Fit a smooth time embedding to the one of a trained network: weights without a training on data.

    SD3 embeds 1000 t by sinusoids of up to 1000 rad per unit of t, whose derivative is noise. The new
    embedder, of the same class, has frequencies up to the backbone's time_scale and follows the old one's
    curve over t.
    """

    of: Annotated[str, Ref("methods")] = Field(description="the network whose time is embedded anew")
    steps: Count = 1500
    lr: float = Field(default=3.0e-3, gt=0)
    limit: float = Field(
        default=0.05,
        gt=0,
        description="largest relative residual of the fit, root mean square, of moving averages over 0.05 of "
        "t: the noise of the old embedding is not followed",
    )
    tangent_limit: float = Field(
        default=0.2, gt=0, description="largest relative gap between tangent and difference of the embedding"
    )
    seed: Seed = 0


INHERITED = ("paper", "loss", "teacher", "train", "guidance", "backbone", "samplers", "provenance")
"""What an entry that continues another one's training leaves to it."""


class Method(Strict):
    """One entry of config/methods/. ``train`` and ``guidance`` hold what differs from the recipe."""

    title: str
    paper: str = ""
    recipe: Annotated[str, Ref("recipes")]
    loss: AnyLossParams | None = Field(
        default=None,
        description="of a method in fewstep/methods: its name, and what differs from its defaults; an entry "
        "that is but a pipeline has none",
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
    pipeline: DiffusersPipeline | None = Field(
        default=None, description="with weights=released, sample from this pipeline of diffusers"
    )
    reembed: Reembed | None = Field(default=None, description="fit a time embedding instead of training")
    continues: Annotated[str | None, Ref("methods")] = Field(
        default=None,
        description="go on with the finished training of the method named here, from its kept state, to more "
        "steps; what this entry leaves out is that method's",
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

    @model_validator(mode="after")
    def _something(self) -> Method:
        if self.loss is None and self.continues is None:
            if self.pipeline is None:
                raise ValueError("loss is missing; only a pipeline of diffusers goes without one")
            given = sorted(
                {
                    *("teacher", "weights", "released", "reembed"),
                    *("train", "guidance", "backbone", "samplers"),
                }
                & self.model_fields_set
            )
            if given:
                raise ValueError(f"{given[0]} belongs to networks of ours; a pipeline without loss has none")
        if self.continues is not None and (self.weights is not None or self.reembed is not None):
            other = "reembed" if self.weights is None else "weights"
            raise ValueError(f"continues goes on with a training, and {other} spares it; keep one")
        return self


class Variant(Strict):
    """What a table row may change in a method: an ablation."""

    loss: dict[str, Any] = {}
    train: dict[str, Any] = {}
    guidance: dict[str, Any] = {}
    weights: dict[str, Any] | None = None
