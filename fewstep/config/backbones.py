"""The networks of config/settings.yaml, by their sizes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Batch, Shape, Size, Strict


class FlowNetwork(Strict):
    """What every network has that is called as ``net(x, t, s, y)`` and gives average velocities."""

    timed: ClassVar[bool] = True
    """Whether it is told the times. One that is not makes data of noise in a single step."""

    shape: Shape = Field(description="latent (C, H, W)")
    target_time: bool = Field(default=True, description="embed the second time s (r_embedder)")
    outputs: Literal[1, 2] = Field(default=1, description="2: velocity head and flow-map head")
    scalar: bool = Field(
        default=False,
        exclude_if=lambda value: not value,
        description="a second output, one number for each sample: the average divergence of the flow (F2D2)",
    )

    @model_validator(mode="after")
    def _one_second_output(self) -> Self:
        if self.scalar and self.outputs == 2:
            raise ValueError("scalar goes with outputs: 1")
        return self

    @property
    def null(self) -> int:
        """The label y that means no condition."""
        raise NotImplementedError

    @property
    def scale_count(self) -> int:
        """Scales of the pyramid that it is given instead of a latent, each with its own time; 1: a latent."""
        return 1

    def samples_in(self, sampler: str, steps: int) -> bool:
        """Whether a kind of sampler can use it: one that is not told the times makes one plain step."""
        return self.timed or (steps == 1 and sampler in ("euler", "cm"))


class ClassNetwork(FlowNetwork):
    """A flow network whose condition is a class."""

    classes: Batch

    @property
    def null(self) -> int:
        """The row after the last class of the label table."""
        return self.classes


class TimedClassNetwork(ClassNetwork):
    """One that embeds times by sinusoids."""

    time_features: Size = Field(default=256, multiple_of=2, description="sinusoids of a time embedding")
    time_scale: float = Field(default=1.0, gt=0, description="highest angular frequency, rad per unit time")
    time_period: float = Field(default=1.0e4, gt=1, description="highest over lowest frequency")

    @property
    def embeds_target_time(self) -> bool:
        """Whether the target time has an embedding of its own."""
        return self.target_time


class LightningDiT(TimedClassNetwork):
    kind: Literal["lightningdit"] = "lightningdit"
    depth: Size
    width: Size
    heads: Size
    patch: Size = 1
    qk_norm: bool = False
    norm: Literal["rms", "rms-plain", "layer"] = Field(
        default="rms", description="rms-plain: without gain (TiT); layer: nor offset (DiT, SiT)"
    )
    mlp: Literal["swiglu", "gelu"] = Field(default="swiglu", description="gelu: as in DiT and SiT")
    rope: bool = Field(default=True, description="rotary positions in attention, beside the added ones")
    predicts: Literal["velocity", "noise"] = Field(
        default="velocity",
        description="noise: of a diffusion of 1,000 steps (DiT); turned into velocities, for sampling alone",
    )
    scales: Size = Field(
        default=1,
        exclude_if=lambda value: value == 1,
        description="of a Laplacian pyramid, each with its own time; patch is the finest scale's (DFM)",
    )
    decoupled: Size | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="the first so many blocks are told t, the others and the final layer s, by one embedding "
        "(Decoupled MeanFlow, arXiv 2510.24474); null: all are told both",
    )
    repeats: Size = Field(
        default=1,
        exclude_if=lambda value: value == 1,
        description="the blocks are gone through so many times, each time told how often before (AFM)",
    )

    @property
    def scale_count(self) -> int:
        return self.scales

    @property
    def embeds_target_time(self) -> bool:
        return self.target_time and self.decoupled is None

    @model_validator(mode="after")
    def _divides(self) -> LightningDiT:
        if self.predicts == "noise" and (self.target_time or self.outputs == 2 or self.scalar):
            raise ValueError("predicts: noise knows one time and has one output")
        if self.scales > 1 and (self.target_time or self.outputs == 2 or self.predicts == "noise"):
            raise ValueError(
                "scales: more than one go with target_time: false, one output, predicts: velocity"
            )
        if self.decoupled is not None and not (
            self.target_time and self.decoupled < self.depth and self.repeats == 1
        ):
            raise ValueError(
                f"decoupled {self.decoupled} must be below depth {self.depth}, with target_time: true and "
                "repeats: 1"
            )
        if self.repeats > 1 and self.scales > 1:
            raise ValueError("repeats: more than one go with scales: 1")
        if self.patch % (1 << (self.scales - 1)):
            raise ValueError(
                f"patch {self.patch} must be halved {self.scales - 1} times, for {self.scales} scales"
            )
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} / heads {self.heads} must be a multiple of 4")
        if self.shape[1] % self.patch or self.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent {self.shape}")
        if self.qk_norm and self.norm == "layer":
            raise ValueError("qk_norm needs norm: rms or rms-plain")
        return self


class Mlp(TimedClassNetwork):
    """Fully connected layers on the flattened input."""

    kind: Literal["mlp"]
    width: Size = 128
    depth: Size = Field(default=3, description="hidden layers")
    conditional: bool = Field(default=True, description="false: labels are ignored")


class UNet(TimedClassNetwork):
    """The convolutional U-Net of DDPM and its successors, on square images."""

    kind: Literal["unet"]
    width: Size = Field(default=128, description="channels are multiples of it")
    multipliers: list[Size] = Field(default=[2, 2, 2], min_length=1, description="of width, by level")
    depth: Size = Field(default=4, description="residual blocks of a level on the way down")
    attention: list[Size] = Field(default=[16], description="sides of the feature maps with attention")
    groups: Size = Field(default=32, description="of group normalisation")
    conditional: bool = Field(default=True, description="false: labels are ignored")

    @model_validator(mode="after")
    def _divides(self) -> UNet:
        side = self.shape[1]
        levels = len(self.multipliers)
        sides = [side >> level for level in range(levels)]
        if self.shape[2] != side or side % (1 << (levels - 1)):
            raise ValueError(f"shape {self.shape}: must be square, its side halved {levels - 1} times")
        if not set(self.attention) <= set(sides):
            raise ValueError(f"attention {self.attention}: the levels have sides {sides}")
        if any(self.width * factor % self.groups for factor in self.multipliers):
            raise ValueError(f"groups {self.groups} do not divide {self.width} times {self.multipliers}")
        return self


class Get(ClassNetwork):
    """The generative equilibrium transformer (arXiv 2401.08639): from noise to data in one step."""

    timed = False

    kind: Literal["get"]
    target_time: Literal[False] = False
    outputs: Literal[1] = 1
    width: Size
    heads: Size
    patch: Size = 2
    depth: Size = Field(default=6, description="blocks of the injection transformer")
    tied: Size = Field(default=3, description="blocks of one iteration of the equilibrium transformer")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden over outer width, injection transformer")
    tied_mlp_ratio: float = Field(default=6.0, gt=0, description="the same, equilibrium transformer")
    iterations: Size = Field(default=6, description="of the tied blocks, in training and in sampling")
    without_gradient: int = Field(
        default=0, ge=0, description="the first so many of them; the others are the phantom gradient"
    )
    conditional: bool = Field(default=True, description="false: labels are ignored")

    @model_validator(mode="after")
    def _divides(self) -> Get:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 and of heads {self.heads}")
        if self.shape[1] % self.patch or self.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent {self.shape}")
        if self.without_gradient >= self.iterations:
            raise ValueError(
                f"without_gradient {self.without_gradient} must leave one of the {self.iterations} iterations"
            )
        return self


class Imf(ClassNetwork):
    """The transformer of improved MeanFlow (arXiv 2512.02012), told all that it knows by tokens."""

    kind: Literal["imf"]
    target_time: Literal[True] = True
    outputs: Literal[1] = 1
    scalar: Literal[False] = Field(default=False, exclude_if=lambda value: not value)
    depth: Size
    width: Size
    heads: Size
    patch: Size = 2
    class_tokens: Size = 8
    scale_tokens: Size = Field(default=4, description="of the guidance scale")
    interval_tokens: Size = Field(default=2, description="of each end of the guidance interval")
    time_tokens: Size = Field(default=4, description="of s - t")
    scale: float = Field(ge=1, description="of the guidance that it has learned")
    interval: list[Annotated[float, Field(ge=0, le=1)]] = Field(
        min_length=2, max_length=2, description="times t in which it is guided"
    )

    @model_validator(mode="after")
    def _divides(self) -> Imf:
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} / heads {self.heads} must be even")
        if self.shape[1] % self.patch or self.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent {self.shape}")
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval {self.interval} must not fall")
        return self


class Lora(Strict):
    """Low-rank adapters of linear layers (arXiv 2106.09685), by peft: W x + (alpha / rank) B A x."""

    rank: Size
    alpha: float | None = Field(default=None, gt=0, description="null: the rank, so that the factor is 1")
    targets: list[str] = Field(
        default=[
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
            *("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
            *("timestep_embedder.linear_1", "timestep_embedder.linear_2"),
        ],
        min_length=1,
        description="ends of the names of the layers that have adapters",
    )

    @property
    def scaling(self) -> float:
        """Factor of B A x."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


SD3_TIMESTEPS = 1000.0
"""SD3's timestep at the noise."""


class Sd3(FlowNetwork):
    """The transformer of Stable Diffusion 3 (arXiv 2403.03206), by diffusers; the defaults are 3.5 Medium's.

    Its condition is a caption: y is an index into a store of text embeddings, whose last row is the empty
    caption.
    """

    kind: Literal["sd3"]
    layers: Size = 24
    heads: Size = 24
    head_width: Size = 64
    patch: Size = 2
    dual_attention: int = Field(
        default=13, ge=0, description="of the first so many blocks: a second attention among image tokens"
    )
    qk_norm: bool = True
    positions: Size = Field(default=384, description="patches along a side that the position table has")
    context: Size = Field(default=4096, description="width of a caption's tokens")
    pooled: Size = Field(default=2048, description="width of a caption's pooled embedding")
    time_scale: float = Field(
        default=SD3_TIMESTEPS,
        gt=0,
        description="highest angular frequency of the time embedding, rad per unit time; 1000 is SD3's own, "
        "too fast for tangents",
    )
    lora: Lora | None = Field(
        default=None, description="train adapters of its teacher, which stays in the same network"
    )

    @property
    def null(self) -> int:
        """The last row of the text store."""
        return -1

    @model_validator(mode="after")
    def _possible(self) -> Sd3:
        if self.outputs != 1 or self.scalar:
            raise ValueError("kind: sd3 has one output")
        if any(side % self.patch or side // self.patch > self.positions for side in self.shape[1:]):
            raise ValueError(
                f"patch {self.patch} and positions {self.positions} do not fit the latent {self.shape}"
            )
        if self.dual_attention > self.layers:
            raise ValueError(f"dual_attention {self.dual_attention} is beyond layers {self.layers}")
        return self


class KlAutoencoder(Strict):
    """diffusers' AutoencoderKL without its quantisation convolutions: a tokenizer that is trained here."""

    kind: Literal["kl-autoencoder"]
    shape: Shape = Field(description="image (C, H, W)")
    latent: Size = Field(description="latent channels")
    widths: list[Size] = Field(min_length=1, description="channels by level; each level halves the side")
    blocks: Size = Field(default=1, description="residual blocks of a level of the encoder")
    groups: Size = Field(default=8, description="of group normalisation")

    @model_validator(mode="after")
    def _divides(self) -> KlAutoencoder:
        factor = 2 ** (len(self.widths) - 1)
        if any(side % factor for side in self.shape[1:]):
            raise ValueError(f"shape {self.shape}: height and width must be divisible by {factor}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups {self.groups} do not divide widths {self.widths}")
        return self


class Clip(Strict):
    """A small CLIP (arXiv 2103.00020) by transformers: an image tower and a text tower."""

    kind: Literal["clip"]
    shape: Shape = Field(description="image (C, H, W)")
    patch: Size
    width: Size
    layers: Size
    heads: Size
    embedding: Size = Field(description="width of the space that both towers share")
    length: Size = Field(description="tokens of a caption, with start and end")
    vocabulary: Size = Field(
        description="the most tokens, with those for padding, unknown words, start and end"
    )

    @model_validator(mode="after")
    def _divides(self) -> Clip:
        if self.shape[1] != self.shape[2] or self.shape[1] % self.patch:
            raise ValueError(f"shape {self.shape} must be square, and patch {self.patch} divide its side")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")
        return self


class ConvAutoencoder(Strict):
    """The demo's tokenizer: factor-two convolutional autoencoder."""

    kind: Literal["conv-autoencoder"]
    shape: Shape = Field(description="image (C, H, W)")
    width: Size
    latent: Size = Field(description="latent channels")


class ConvClassifier(Strict):
    """The demo's feature extractor."""

    kind: Literal["conv-classifier"]
    shape: Shape = Field(description="image (C, H, W)")
    classes: Batch
    features: Size


FlowBackbone = Annotated[LightningDiT | Mlp | UNet | Get | Imf | Sd3, Field(discriminator="kind")]
"""Of networks with average velocities."""
Backbone = Annotated[
    LightningDiT | Mlp | UNet | Get | Imf | Sd3 | ConvAutoencoder | ConvClassifier | KlAutoencoder | Clip,
    Field(discriminator="kind"),
]
