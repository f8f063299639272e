"""Networks F(x, t, s, y) of a flow, other than LightningDiT: for points of the plane and for pixels."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .base import Strict


class FlowNetwork(Strict):
    """What every network has that is called as ``net(x, t, s, y)`` and gives average velocities."""

    shape: list[int] = Field(min_length=3, max_length=3, description="latent (C, H, W)")
    classes: int = Field(gt=0)
    target_time: bool = Field(default=True, description="embed the second time s (r_embedder)")
    outputs: Literal[1, 2] = Field(default=1, description="2: velocity head and flow-map head")
    time_features: int = Field(default=256, gt=0, description="sinusoids of a time embedding")
    time_scale: float = Field(default=1.0, gt=0, description="highest angular frequency, rad per unit time")
    time_period: float = Field(default=1.0e4, gt=1, description="highest over lowest frequency")


class Mlp(FlowNetwork):
    """Fully connected layers on the flattened input."""

    kind: Literal["mlp"]
    width: int = Field(default=128, gt=0)
    depth: int = Field(default=3, gt=0, description="hidden layers")
    conditional: bool = Field(default=True, description="false: labels are ignored")


class UNet(FlowNetwork):
    """The convolutional U-Net of DDPM and its successors, on square images."""

    kind: Literal["unet"]
    width: int = Field(default=128, gt=0, description="channels are multiples of it")
    multipliers: list[int] = Field(default=[2, 2, 2], min_length=1, description="of width, by level")
    depth: int = Field(default=4, gt=0, description="residual blocks of a level on the way down")
    attention: list[int] = Field(default=[16], description="sides of the feature maps with attention")
    groups: int = Field(default=32, gt=0, description="of group normalisation")
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
