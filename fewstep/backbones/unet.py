"""The U-Net of DDPM and NCSN++ (arXiv 2006.11239, 2011.13456) with two times. Knows diffusers' blocks.

It is the trunk of diffusers' UNet2DModel, in the shape of the DDPM++ network of EDM (SongUNet, arXiv
2206.00364): residual blocks that also change the resolution, attention at one resolution, after every block
on the way down and the last one on the way up, all levels equally wide.

For CIFAR-10 it has 56.39 M weights, SongUNet 55.73 M. Differences: the first convolution already has the
width of the first level (0.33 M); the second time (0.33 M) and its sinusoids, whose angles stay below
``time_scale`` (layers.py); residual sums are not divided by the root of 2; no dropout, because losses may
draw no random numbers of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..config import backbones as specs
from .layers import Conditioned, ScalarHead, zero

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class UNet(Conditioned):
    """Average velocity F(x, t, s, y) of images (B, C, H, W).

    With ``target_time`` off, s is ignored; with it on, the network starts independent of s. It starts as
    F = 0. With ``outputs: 2`` there is a second output convolution, ``final_layer_u``, and the result is
    the pair (velocity, flow map). With ``scalar`` it is F and one number for each sample, (B,).
    """

    def __init__(self, spec: specs.UNet) -> None:
        super().__init__()
        embedding = 4 * spec.width
        self.embed(spec, embedding, spec.conditional)
        trunk = _trunk(spec, embedding)
        self.conv_in = trunk.conv_in
        self.down_blocks = trunk.down_blocks
        self.mid_block = trunk.mid_block
        self.up_blocks = trunk.up_blocks
        self.norm = trunk.conv_norm_out
        self.act = trunk.conv_act
        self.final_layer = trunk.conv_out
        self.final_layer_u: nn.Module | None = None
        if spec.outputs == 2:
            self.final_layer_u = nn.Conv2d(trunk.conv_out.in_channels, spec.shape[0], 3, padding=1)
        zero(self.final_layer, self.final_layer_u)
        features = trunk.conv_out.in_channels * spec.shape[1] * spec.shape[2]
        self.scalar_head = ScalarHead(features) if spec.scalar else None

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled, recomputed and sharded one by one."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate the network at x (B, C, H, W), t and s (B,) in [0, 1], labels y (B,).

        Returns:
            The average velocity in the shape and dtype of ``x``, or (velocity, flow map), or it and a scalar.
        """
        c = self.condition(t, s, y)
        h = self.conv_in(x)
        skips = (h,)
        for block in self.down_blocks:
            h, more = block(hidden_states=h, temb=c)
            skips += more
        h = self.mid_block(h, c)
        for block in self.up_blocks:
            own = len(block.resnets)
            h = block(hidden_states=h, res_hidden_states_tuple=skips[-own:], temb=c)
            skips = skips[:-own]
        h = self.act(self.norm(h))
        velocity = self.final_layer(h).to(x.dtype)
        if self.scalar_head is not None:
            return velocity, self.scalar_head(h).to(x.dtype)
        if self.final_layer_u is None:
            return velocity
        return velocity, self.final_layer_u(h).to(x.dtype)


def _trunk(spec: specs.UNet, embedding: int) -> UNet2DModel:
    """diffusers' network without its times; the last convolution of every residual branch starts at zero."""
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    channels, side, _ = spec.shape
    attended = [side >> level in spec.attention for level in range(len(spec.multipliers))]
    widths = [spec.width * factor for factor in spec.multipliers]
    trunk = UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=spec.depth,
        down_block_types=tuple("AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attended),
        up_block_types=tuple(
            "AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attended)
        ),
        downsample_type="resnet",
        upsample_type="resnet",
        norm_num_groups=spec.groups,
        norm_eps=1e-6,
        time_embedding_dim=embedding,
        attention_head_dim=min(widths),
    )
    for block in trunk.up_blocks:
        for index in range(len(getattr(block, "attentions", ())) - 1):
            block.attentions[index] = nn.Identity()
    for module in trunk.modules():
        if isinstance(module, ResnetBlock2D):
            zero(module.conv2)
        elif isinstance(module, Attention):
            zero(module.to_out[0])
    return trunk
