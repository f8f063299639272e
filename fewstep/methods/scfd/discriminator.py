"""StyleGAN2's residual discriminator (arXiv 1912.04958, section 4.1 and Appendix B), without labels.

Every weight is drawn from N(0, 1) and scaled at use by the root of its fan-in (arXiv 1710.10196, section
4.1). Where the side is halved, a binomial filter comes before the stride. Beside the features of a sample the
last block sees one number, how much the samples of its group differ.

Difference from the published code: a group is made of neighbouring rows of the batch, not of rows that are a
quarter of the batch apart, so that any whole groups of a batch have the same groups as the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, linear, pad


class Discriminator(nn.Module):
    """One number for each image or latent: large for what looks real.

    Args:
        shape: (C, H, W); sides are halved down to 4, or to the last that is even.
        base: a block at height n has base / n channels ...
        largest: ... and no more than so many.
        group: rows whose spread the last block sees.
    """

    def __init__(self, shape: Sequence[int], base: int, largest: int, group: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.group = group
        heights = [height]
        while height % 2 == width % 2 == 0 and min(height, width) > 4:
            height, width = height // 2, width // 2
            heights.append(height)
        widths = [max(1, min(base // each, largest)) for each in heights]
        self.inward = _Convolution(channels, widths[0], 1, activated=True)
        self.blocks = nn.ModuleList(_Block(*ends) for ends in pairwise(widths))
        last = widths[-1]
        self.mixed = _Convolution(last + 1, last, 3, activated=True)
        self.hidden = _Linear(last * height * width, last, activated=True)
        self.outward = _Linear(last, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B,) of x (B, C, H, W).

        Raises:
            ValueError: the rows are not whole groups.
        """
        h = self.inward(x)
        for block in self.blocks:
            h = block(h)
        h = self.mixed(torch.cat([h, self._spread(h)], 1))
        return self.outward(self.hidden(h.flatten(1)))[:, 0]

    def _spread(self, h: Tensor) -> Tensor:
        """Mean standard deviation within the groups of h (B, C, H, W), as one more channel (B, 1, H, W)."""
        if len(h) % self.group:
            raise ValueError(f"loss.group: {len(h)} rows are not groups of {self.group}")
        groups = h.unflatten(0, (-1, self.group))
        deviation = ((groups - groups.mean(1, keepdim=True)).square().mean(1) + 1e-8).sqrt()
        each = deviation.flatten(1).mean(1).repeat_interleave(self.group)
        return each[:, None, None, None].expand(-1, 1, *h.shape[2:])


class _Block(nn.Module):
    """Two convolutions and a shortcut, the side halved; the sum keeps the variance."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = _Convolution(inputs, inputs, 3, activated=True)
        self.second = _Convolution(inputs, outputs, 3, halves=True, activated=True)
        self.shortcut = _Convolution(inputs, outputs, 1, halves=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + self.shortcut(x)) * math.sqrt(0.5)


class _Scaled(nn.Module):
    """What convolutions and linear layers share: weights scaled at use, and a leaky ReLU with gain root 2."""

    def __init__(self, shape: Sequence[int], bias: bool, activated: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.scale = 1 / math.sqrt(math.prod(shape[1:]))
        self.activated = activated

    def finish(self, h: Tensor) -> Tensor:
        return leaky_relu(h, 0.2) * math.sqrt(2) if self.activated else h


class _Convolution(_Scaled):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        *,
        halves: bool = False,
        bias: bool = True,
        activated: bool = False,
    ) -> None:
        super().__init__((outputs, inputs, side, side), bias, activated)
        self.halves = halves
        self.padding = side // 2
        if halves:
            line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
            self.register_buffer("filter", torch.outer(line, line).repeat(inputs, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.scale
        if not self.halves:
            return self.finish(conv2d(x, weight, self.bias, padding=self.padding))
        smooth = conv2d(pad(x, [self.padding + 1] * 4), self.filter.to(x.dtype), groups=x.shape[1])
        return self.finish(conv2d(smooth, weight, self.bias, stride=2))


class _Linear(_Scaled):
    def __init__(self, inputs: int, outputs: int, *, activated: bool = False) -> None:
        super().__init__((outputs, inputs), True, activated)

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(linear(x, self.weight * self.scale, self.bias))
