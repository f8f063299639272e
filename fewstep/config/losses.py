"""The parameters of every training objective: one class per method, listed in ``Loss``.

Times and equations are in the project's one convention: x_t = t x1 + (1 - t) x0, noise at t = 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Strict
from .laws import Enhancement as Enhancement
from .laws import TimeDistribution as TimeDistribution


class FlowMatchingLoss(Strict):
    name: Literal["flow_matching"]
    times: TimeDistribution = TimeDistribution()
    cosine: bool = Field(default=False, description="add 1 - cos(F, v) over channels")
    expanded: bool = Field(default=False, description="half of the batch conditioned on 2 - t (FACM stage 1)")


class ConsistencyTerms(Strict):
    """What the losses built on the consistency residual share."""

    times: TimeDistribution = TimeDistribution(law="segments", segments=100)
    clamp: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    alpha_power: float = Field(default=0.5, gt=0, description="alpha(t) = 1 - t^p")
    beta: bool = Field(default=True, description="weight the loss by cos(pi t / 2)")
    norm_power: float = Field(default=0.5, ge=0, le=1, description="p of the adaptive weight")
    norm_constant: float = Field(default=1e-3, gt=0, description="c of the adaptive weight")


class CDLoss(ConsistencyTerms):
    name: Literal["cd"]


class FACMLoss(ConsistencyTerms):
    name: Literal["facm"]
    anchor: Literal["expanded", "target"] = Field(
        default="expanded", description="flow-matching condition: time 2 - t, or target time s = t"
    )


class DECMLoss(ConsistencyTerms):
    name: Literal["decm"]
    fm: bool = True
    cm: bool = True
    n2n: bool = True
    freq: int = Field(default=3, gt=0, description="noise-to-noisy update every freq steps")
    r_max: float = Field(default=0.01, ge=0, lt=1, description="r ~ U(0, r_max)")
    weight_right: float = Field(default=1.0, ge=0, description="lambda, right end")
    weight_left: float = Field(default=1.0, ge=0, description="gamma, left end")
    n2n_target: Literal["psi", "interpolant"] = "psi"
    n2n_weight: Literal["root", "linear"] = Field(
        default="root", description="w2: 1 - sqrt(1 - (t - r)), or (t - r) / 2"
    )

    @model_validator(mode="after")
    def _possible(self) -> DECMLoss:
        if not (self.fm or self.cm or self.n2n):
            raise ValueError("fm, cm and n2n are all off: nothing to train")
        if self.weight_left + self.weight_right == 0:
            raise ValueError("weight_left and weight_right are both 0")
        return self


class MeanFlowLoss(Strict):
    name: Literal["meanflow"]
    times: TimeDistribution = TimeDistribution(law="arctan", mean=-0.8, std=1.6)
    flow_matching_fraction: float = Field(
        default=0.0, ge=0, le=1, description="share of the batch with s = t"
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(default=1e-3, gt=0)
    omega: float = Field(
        default=1.0, gt=0, le=1, description="own guidance: weight of the velocity followed; 1: none ..."
    )
    kappa: float = Field(
        default=0.0, ge=0, lt=1, description="... of the network's conditional one; the rest has no label"
    )
    guided: list[float] = Field(
        default=[0.0, 1.0], min_length=2, max_length=2, description="times at which it guides itself"
    )


class FlowMapLoss(Strict):
    """Losses over two times below 1: their networks need ``target_time``."""


class SplitMeanFlowLoss(FlowMapLoss):
    name: Literal["splitmeanflow"]
    times: TimeDistribution = TimeDistribution()
    flow_matching_fraction: float = Field(
        default=0.5, ge=0, le=1, description="share of the batch with s = t, which learns v"
    )
    norm_power: float = Field(default=0.0, ge=0, le=1)
    norm_constant: float = Field(default=1e-3, gt=0)


class IMeanFlowLoss(FlowMapLoss):
    name: Literal["imeanflow"]
    times: TimeDistribution = TimeDistribution(law="logit-normal", mean=0.4, std=1.0)
    flow_matching_fraction: float = Field(
        default=0.5, ge=0, le=1, description="share of the batch with s = t"
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(default=1e-6, gt=0, description="c, beside a mean of squares")


class SoFlowLoss(FlowMapLoss):
    name: Literal["soflow"]
    flow_matching_fraction: float = Field(
        default=0.75, ge=0, le=1, description="share of the batch that learns v at s = t"
    )
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.2, std=1.0), description="of t in that share"
    )
    consistency_times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.2, std=0.8), description="of t elsewhere"
    )
    end_times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=1.0, std=0.8),
        description="of s elsewhere, raised to t",
    )
    ratio: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[0.1, 0.002],
        min_length=2,
        max_length=2,
        description="(l - t) / (s - t), at the first step and at the last",
    )
    norm_power: float = Field(default=1.0, ge=0, le=1)
    norm_constant: float = Field(default=0.01, gt=0)


class KDLoss(Strict):
    name: Literal["kd"]
    solver: Literal["heun", "euler"] = "heun"
    solver_steps: int = Field(default=18, gt=0, description="of the teacher's ODE, from noise to data")


class AYFLoss(FlowMapLoss):
    name: Literal["ayf"]
    objective: Literal["emd", "lmd"] = Field(
        default="emd", description="emd: the residual at the left end (Eulerian); lmd: at the right end"
    )
    gaps: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=-0.8, std=1.0),
        description="of s - t; t is uniform on the rest",
    )
    warmup: int = Field(default=10_000, ge=0, description="emd: steps over which the tangent is ramped in")
    rho: float = Field(default=0.99, gt=0, le=1, description="emd: where the ramp ends")
    constant: float = Field(default=0.1, gt=0, description="c of g / (rms(g) + c)")


class DuMoLoss(Strict):
    name: Literal["dumo"]
    times: TimeDistribution = TimeDistribution()
    enhance: Enhancement | None = Field(default=None, description="null: learn from x1 - x0")
    direction: Literal["head", "conditional"] = Field(
        default="head", description="along which x_t moves: the velocity head (H), or the sample's v* (C)"
    )
    difference: Literal["one-sided", "central", "tangent"] = Field(
        default="one-sided", description="derivative of the prediction of the data along the path"
    )
    delta: float | None = Field(
        default=0.01, gt=0, lt=1, description="t' = t + delta; central: half the interval"
    )
    ratio: float | None = Field(
        default=None, gt=0, lt=1, description="consistency ratio l instead of delta: t' = 1 - l (1 - t)"
    )
    gain: Literal["unit", "ratio", "sine"] = Field(
        default="unit", description="g(t): 1, 1 - l, or 4 (1 - t) / sin with a cosine weight"
    )
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    weight_u: float = Field(default=1.0, gt=0, description="w_u of the flow-map head's loss")
    huber_v: float | None = Field(default=None, gt=0, description="c of the pseudo-Huber loss; null: squares")
    huber_u: float | None = Field(default=None, gt=0, description="the same of the flow-map head")
    cosine_v: bool = Field(default=False, description="add 1 - cos(v, v*) over channels")
    target_decay: float | None = Field(
        default=None, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )

    @model_validator(mode="after")
    def _one_interval(self) -> DuMoLoss:
        given = {name for name in ("delta", "ratio") if getattr(self, name) is not None}
        if self.difference == "tangent" and given:
            raise ValueError("difference: tangent has no interval; set delta and ratio to null")
        if self.difference == "central" and given != {"delta"}:
            raise ValueError("difference: central needs delta, and ratio: null")
        if self.difference == "one-sided" and len(given) != 1:
            raise ValueError("give one of delta, ratio, and set the other to null")
        if self.gain == "ratio" and self.difference != "one-sided":
            raise ValueError("gain: ratio belongs to difference: one-sided")
        return self


class SCMLoss(Strict):
    name: Literal["scm"]
    times: TimeDistribution = TimeDistribution(law="arctan", mean=-0.8, std=1.6)
    warmup: int = Field(default=10_000, ge=0, description="steps over which the tangent is ramped in")
    constant: float = Field(default=0.1, gt=0, description="c of g / (rms(g) + c)")
    learned_weight: bool = Field(default=True, description="uncertainty weight w(t), trained jointly")


class IMMLoss(Strict):
    name: Literal["imm"]
    particles: int = Field(default=4, gt=0, description="M: rows of a group, which share their times")
    first: float = Field(default=0.006, gt=0, lt=1, description="earliest t; the latest is the data")
    decrement: Literal["noise", "time"] = Field(
        default="noise", description="what r differs from t by a constant in: (1 - t) / t, or t"
    )
    step: float = Field(default=160 / 2**12, gt=0, description="that constant")
    power: float = Field(default=2.0, ge=1, description="a of the weight")
    shift: float = Field(default=4.0, description="b of the weight")


class ShortcutLoss(Strict):
    name: Literal["shortcut"]
    grid: int = Field(default=128, gt=1, description="M: number of smallest jumps, a power of two")
    bootstrap: float = Field(default=0.125, gt=0, lt=1, description="share of the batch that learns jumps")
    guidance: float = Field(default=1.5, ge=1, description="scale of the smallest jumps without a teacher")
    clamp: float | None = Field(default=4.0, gt=0, description="elementwise bound of what is bootstrapped")
    target_decay: float = Field(default=0.999, ge=0, lt=1, description="of the moving average that jumps")

    @model_validator(mode="after")
    def _doubles(self) -> ShortcutLoss:
        if self.grid & (self.grid - 1):
            raise ValueError(f"grid {self.grid} is no power of two")
        return self


class ICTLoss(Strict):
    name: Literal["ict"]
    intervals: list[Annotated[int, Field(gt=0)]] = Field(
        default=[10, 1280], min_length=2, max_length=2, description="of the grid, in the first and last stage"
    )
    mean: float = Field(default=-1.1, description="of ln sigma, by which intervals are drawn")
    std: float = Field(default=2.0, gt=0)
    huber: float = Field(default=0.00054, gt=0, description="c of the pseudo-Huber loss")

    @model_validator(mode="after")
    def _grows(self) -> ICTLoss:
        if self.intervals[0] > self.intervals[1]:
            raise ValueError(f"intervals {self.intervals} must not fall")
        return self


class CTMLoss(Strict):
    name: Literal["ctm"]
    points: int = Field(default=40, gt=1, description="of the grid of t, u and s")
    solver: Literal["heun", "euler"] = "heun"
    solver_steps: int = Field(default=39, gt=0, description="most grid steps from t to u")
    dsm: float = Field(default=1.0, ge=0, description="weight of denoising score matching")
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=1.2, std=1.2),
        description="of denoising score matching",
    )
    target_decay: float = Field(default=0.999, ge=0, lt=1)


class TCMLoss(Strict):
    name: Literal["tcm"]
    times: TimeDistribution = Field(
        default=TimeDistribution(law="logit-normal", mean=0.8, std=1.6), description="of t in stage 1"
    )
    q: float = Field(default=4.0, gt=1, description="the step in noise shrinks by this factor ...")
    double: int = Field(default=10_000, gt=0, description="... every so many training steps")
    least: float = Field(default=1 / 256, gt=0, lt=1, description="share of the noise level it ends at")
    huber: float = Field(default=0.00054, gt=0, description="c of the pseudo-Huber loss")
    direction: Literal["data", "teacher"] = Field(
        default="data", description="follow x1 - x0, or the teacher's velocity"
    )
    boundary: float | None = Field(
        default=None, gt=0, lt=1, description="stage 2: only t up to here, against the frozen teacher beyond"
    )
    boundary_share: float = Field(default=0.25, gt=0, lt=1, description="of the rows, at the boundary")
    boundary_weight: float = Field(default=0.1, gt=0)
    tail: float = Field(default=0.02, gt=0, description="width of stage 2's law of ln sigma")

    @model_validator(mode="after")
    def _one_teacher(self) -> TCMLoss:
        if self.boundary is not None and self.direction == "teacher":
            raise ValueError("direction: teacher with a boundary: the teacher of stage 2 has no velocity")
        return self


class FollowedTarget(Strict):
    """The network that a loss jumps with: itself, or a moving average."""

    target_decay: float | None = Field(
        default=None, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
    target_warmup: bool = Field(default=False, description="approach that decay from 0")


class UCGMLoss(FollowedTarget):
    name: Literal["ucgm"]
    times: TimeDistribution = TimeDistribution(law="beta", alpha=1.0, beta=0.8)
    ratio: float = Field(
        default=1.0, ge=0, le=1, description="consistency ratio lambda: 0 flow matching, 1 consistency"
    )
    epsilon: float = Field(default=0.005, gt=0, lt=1, description="ratio 1: half the difference's interval")
    enhance: Enhancement | None = Field(default=None, description="null: learn from x1 - x0")
    gain: Literal["sine", "unit", "ratio"] = Field(
        default="sine", description="g(t): 4 (1 - t) / sin with a cosine weight, 1, or 1 - lambda"
    )
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    huber: float | None = Field(
        default=5.0, ge=0, description="c of the pseudo-Huber loss; 0: root of the mean square; null: squares"
    )
    cosine: bool = Field(default=False, description="add 1 - cos(u, target) over channels")


class RecursiveTerms(FollowedTarget):
    """RCGM's chain of segments."""

    times: TimeDistribution = TimeDistribution()
    segments: int = Field(default=2, gt=0, description="N, jumps of the target network after the first step")
    delta: float = Field(default=0.01, gt=0, lt=1, description="length of the first step")
    clip: float | None = Field(default=1.0, gt=0, description="elementwise bound of the residual")
    enhance: Enhancement | None = Field(default=None, description="null: learn from x1 - x0")
    near: float = Field(default=0.0, ge=0, le=1, description="share of these rows with s close to t")
    near_length: float = Field(default=0.05, gt=0, le=1, description="how close, as a share of 1 - t")


class RCGMLoss(RecursiveTerms):
    name: Literal["rcgm"]
    target_decay: float | None = Field(
        default=0.999, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )


class TwinFlowLoss(RecursiveTerms):
    name: Literal["twinflow"]
    target_decay: float | None = Field(
        default=0.99, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
    target_warmup: bool = Field(default=True, description="approach that decay from 0")
    share: float = Field(
        default=1 / 3, ge=0, le=1, description="lambda, rows for L_adv and L_rectify; 0 is RCGM"
    )
    rectify_weight: float = Field(default=1.0, ge=0, description="of L_rectify; the release has 0.5")
    rectify_clamp: float | None = Field(
        default=None, gt=0, description="elementwise bound of v_real - v_fake; the release has 1"
    )
    base_everywhere: bool = Field(default=False, description="RCGM's loss on the generator's rows too")
    metric: Literal["squared", "barron"] = "squared"
    metric_constant: float = Field(default=1e-3, gt=0, description="c of barron")
    time_weight: bool = Field(
        default=False, description="weight RCGM's loss by tan((1 - (s - t)) pi / 2.5) + 1"
    )


class AutoencoderLoss(Strict):
    name: Literal["autoencoder"]
    noise: float = Field(default=0.1, ge=0, description="standard deviation added to the latent")
    penalty: float = Field(default=1e-3, ge=0, description="weight of the squared latent")


class ClassifierLoss(Strict):
    name: Literal["classifier"]
    noise: float = Field(default=0.1, ge=0)
    smoothing: float = Field(default=0.1, ge=0, lt=1)


Loss = Annotated[
    FlowMatchingLoss
    | CDLoss
    | FACMLoss
    | DECMLoss
    | MeanFlowLoss
    | SplitMeanFlowLoss
    | IMeanFlowLoss
    | SoFlowLoss
    | KDLoss
    | AYFLoss
    | DuMoLoss
    | SCMLoss
    | IMMLoss
    | ShortcutLoss
    | ICTLoss
    | CTMLoss
    | TCMLoss
    | UCGMLoss
    | RCGMLoss
    | TwinFlowLoss
    | AutoencoderLoss
    | ClassifierLoss,
    Field(discriminator="name"),
]
