"""What the parameters of training objectives (methods/*/params.py) are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from .backbones import Backbone
from .base import Batch, Size, Strict
from .settings import Mark, Optimizer, Train

Problems = Iterator[tuple[str, str]]
"""Pairs of a key below ``loss`` (empty for all of it) and what is wrong there."""


class TimeDistribution(Strict):
    """Distribution of the training time t in [0, 1]."""

    law: Literal["uniform", "segments", "arctan", "logit-normal", "beta"] = "uniform"
    segments: Batch | None = Field(default=None, gt=1, description="segments: t on {0, 1/N .. (N-1)/N}")
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
        default="teacher", description="the frozen teacher, or the network itself by its moving average"
    )
    difference: Literal["line", "online", "reference"] = Field(
        default="line",
        description="what is added zeta times: the reference's prediction less x1 - x0 (line) or its own "
        "without label (reference), or that of the network that learns less the latter (online)",
    )
    zeta: float = Field(description="weight of the difference from time start on")
    start: float = Field(default=0.25, ge=0, le=1, description="time below which zeta gives way to beyond")
    beyond: float = Field(
        default=0.5, ge=0, le=1, description="weight of the conditional prediction below start"
    )


class LossParams(Strict):
    """Parameters of a training objective, and what it needs of network, teacher and schedule.

    Times and equations are in the project's one convention: x_t = t x1 + (1 - t) x0, noise at t = 0.
    A subclass has a field ``name``, a literal equal to the name of its folder, which is its default too.
    """

    name: str

    title: ClassVar[str]
    """Name of the method in README's table."""
    papers: ClassVar[tuple[str, ...]] = ()
    """arXiv identifiers."""
    note: ClassVar[str] = ""
    """What README's table of methods says beside the papers."""
    provenance: ClassVar[dict[str, Mark]] = {}
    """Where the defaults come from: mark of a default, or of all below a key, as in config/methods."""

    kind: ClassVar[Literal["flow", "image"]] = "flow"
    """flow: trains net(x, t, s, y); image: trains another network on images alone."""
    outputs: ClassVar[tuple[int, ...]] = (1,)
    """The numbers of outputs that its network may have: 2 for velocity and flow map."""
    scalar: ClassVar[bool] = False
    """Whether its network must have the output `scalar`; others may not."""
    target_time: ClassVar[bool | None] = None
    """True: its network must know a second time s; False: it must not; None: either will do."""
    pyramid: ClassVar[bool] = False
    """Whether its network is given the scales of a pyramid, with a time for each."""

    one_step: ClassVar[bool] = False
    """Whether it trains a single step from noise to data, which a network without times can learn."""

    @property
    def velocity_at_expanded_time(self) -> bool:
        """Whether a network with one time has its velocity at the time condition 2 - t (FACM)."""
        return False

    @property
    def follows_data(self) -> bool:
        """Whether a teacher lends its weights alone, and labels are dropped as without one."""
        return False

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        """Needs that are not met beside those above; ``teacher`` is the loss of the method's teacher."""
        yield from ()

    def check_schedule(self, train: Train) -> Problems:
        """Needs of the training's length and batch, which the scale of a recipe decides, that are not met.

        They are told of what a target asks for alone.
        """
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _complete_times(cls, raw: Any) -> Any:
        """A time distribution that keeps the default's law says only what differs from the default."""
        if not isinstance(raw, Mapping):
            return raw
        raw = dict(raw)
        for name, field in cls.model_fields.items():
            default, given = field.default, raw.get(name)
            if not isinstance(default, TimeDistribution) or not isinstance(given, Mapping):
                continue
            if given.get("law", default.law) == default.law:
                raw[name] = default.model_dump() | dict(given)
        return raw


def completed(given: Any, default: Optimizer) -> Any:
    """Settings of an optimizer that say only what differs from the default; what are no settings stays."""
    own = given.model_dump() if isinstance(given, Optimizer) else given
    return default.model_dump() | dict(own) if isinstance(own, Mapping) else own


class WithPlayers(LossParams):
    """An adversarial objective: networks that are trained in turns of their own beside the student.

    A subclass gives ``players`` a default, and an entry says only what differs from it.
    """

    players: dict[str, Optimizer] = Field(description="optimizer of each network beside the student")

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Of each network beside the student, those included that an option adds."""
        return self.players

    @model_validator(mode="before")
    @classmethod
    def _complete_players(cls, raw: Any) -> Any:
        default = cls.model_fields["players"].default
        if not isinstance(raw, Mapping) or not isinstance(raw.get("players", {}), Mapping):
            return raw
        given: Mapping[str, Any] = raw.get("players", {})
        if unknown := given.keys() - default.keys():
            raise ValueError(f"players: no {sorted(unknown)[0]!r}; there is {', '.join(default)}")
        filled = {name: completed(given.get(name, {}), settings) for name, settings in default.items()}
        return dict(raw) | {"players": filled}


class ConsistencyTerms(LossParams):
    """What the losses built on the consistency residual share."""

    times: TimeDistribution = TimeDistribution(law="segments", segments=100)
    clamp: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    alpha_power: float = Field(default=0.5, gt=0, description="alpha(t) = 1 - t^p")
    beta: bool = Field(default=True, description="weight the loss by cos(pi t / 2)")
    norm_power: float = Field(default=0.5, ge=0, le=1, description="p of the adaptive weight")
    norm_constant: float = Field(default=1e-3, gt=0, description="c of the adaptive weight")


class FollowedTarget(LossParams):
    """The network that a loss jumps with: the network itself, or its moving average."""

    target_decay: float | None = Field(
        default=None, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
    target_warmup: bool = Field(default=False, description="approach that decay from 0")


class EnhancedTarget(LossParams):
    """The velocity that a loss learns from, with or without guidance mixed into it."""

    enhance: Enhancement | None = Field(default=None, description="null: learn from x1 - x0")

    def check(self, train: Train, backbone: Backbone, teacher: LossParams | None) -> Problems:
        if self.enhance is not None and self.enhance.reference == "teacher" and teacher is None:
            yield (
                "enhance.reference",
                "teacher, but teacher: false; use reference: own, remove enhance, or set teacher: true",
            )


class RecursiveTerms(FollowedTarget, EnhancedTarget):
    """RCGM's chain of segments."""

    target_time = True

    times: TimeDistribution = TimeDistribution()
    segments: Size = Field(default=2, description="N, jumps of the target network after the first step")
    delta: float = Field(default=0.01, gt=0, lt=1, description="length of the first step")
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    near: float = Field(default=0.0, ge=0, le=1, description="share of these rows with s close to t")
    near_length: float = Field(default=0.05, gt=0, le=1, description="how close, as a share of 1 - t")
