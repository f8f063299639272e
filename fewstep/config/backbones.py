"""The networks of config/settings.yaml, by their sizes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .base import Batch, Shape, Size, Strict


class FlowNetwork(Strict):
    """What every network has that is called as ``net(x, t, s, y)`` and gives average velocities."""

    shape: Shape = Field(description="latent (C, H, W)")
    classes: Batch
    target_time: bool = Field(default=True, description="embed the second time s (r_embedder)")
    outputs: Literal[1, 2] = Field(default=1, description="2: velocity head and flow-map head")
    time_features: Size = Field(default=256, multiple_of=2, description="sinusoids of a time embedding")
    time_scale: float = Field(default=1.0, gt=0, description="highest angular frequency, rad per unit time")
    time_period: float = Field(default=1.0e4, gt=1, description="highest over lowest frequency")


class LightningDiT(FlowNetwork):
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

    @model_validator(mode="after")
    def _divides(self) -> LightningDiT:
        if self.predicts == "noise" and (self.target_time or self.outputs == 2):
            raise ValueError("predicts: noise knows one time and has one output")
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} / heads {self.heads} must be a multiple of 4")
        if self.shape[1] % self.patch or self.shape[2] % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the latent {self.shape}")
        if self.qk_norm and self.norm == "layer":
            raise ValueError("qk_norm needs norm: rms or rms-plain")
        return self


class Mlp(FlowNetwork):
    """Fully connected layers on the flattened input."""

    kind: Literal["mlp"]
    width: Size = 128
    depth: Size = Field(default=3, description="hidden layers")
    conditional: bool = Field(default=True, description="false: labels are ignored")


class UNet(FlowNetwork):
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


FlowBackbone = Annotated[LightningDiT | Mlp | UNet, Field(discriminator="kind")]
Backbone = Annotated[
    LightningDiT | Mlp | UNet | ConvAutoencoder | ConvClassifier, Field(discriminator="kind")
]
