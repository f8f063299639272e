"""Sizes on disk that follow from the configuration alone, in bytes."""

from __future__ import annotations

from math import prod

from ..config.networks import Mlp, UNet
from ..config.settings import Backbone, ConvAutoencoder, Latents, LightningDiT, Protocol, Tokenizer

BLOCK = 512
"""Of a tar; every member has a header of one block and content in whole blocks."""
NPY_HEADER = 128


def parameters(backbone: Backbone) -> int:
    """Numbers that a network's file holds, to a few in a thousand (small buffers are left out)."""
    if isinstance(backbone, LightningDiT):
        width = backbone.width
        hidden = 8 * width // 3
        tokens = prod(backbone.shape[1:]) // backbone.patch**2
        patch = backbone.patch**2 * backbone.shape[0]
        gain = width if backbone.norm == "rms" else 0
        block = _linear(width, 3 * width) + _linear(width, width) + _linear(width, 6 * width) + 2 * gain
        if backbone.mlp == "swiglu":
            block += _linear(width, 2 * hidden) + _linear(hidden, width)
        else:
            block += _linear(width, 4 * width) + _linear(4 * width, width)
        time = _linear(backbone.time_features, width) + _linear(width, width)
        final = gain + _linear(width, patch) + _linear(width, 2 * width)
        embeddings = tokens * width + (backbone.classes + 1) * width + _linear(patch, width)
        times = 2 if backbone.target_time else 1
        return backbone.depth * block + times * time + backbone.outputs * final + embeddings
    if isinstance(backbone, Mlp):
        size, width = prod(backbone.shape), backbone.width
        heads = backbone.outputs * _linear(width, size)
        hidden = _linear(size, width) + (backbone.depth - 1) * _linear(width, width)
        return hidden + heads + _embeddings(backbone, width)
    if isinstance(backbone, UNet):
        return _unet(backbone)
    channels, height, width = backbone.shape
    if isinstance(backbone, ConvAutoencoder):
        inner = backbone.width
        encoder = _linear(9 * channels, inner) + _linear(4 * inner, inner) + _linear(inner, backbone.latent)
        return (
            encoder
            + _linear(9 * backbone.latent, inner)
            + _linear(4 * inner, inner)
            + _linear(9 * inner, channels)
        )
    trunk = _linear(9 * channels, 32) + _linear(9 * 32, 64) + _linear(9 * 64, 64)
    flat = 64 * (height // 4) * (width // 4)
    return trunk + _linear(flat, backbone.features) + _linear(backbone.features, backbone.classes)


def _embeddings(backbone: Mlp | UNet, width: int) -> int:
    """Those of one or two times, and of the labels."""
    time = _linear(backbone.time_features, width) + _linear(width, width)
    labels = (backbone.classes + 1) * width if backbone.conditional else 0
    return (2 if backbone.target_time else 1) * time + labels


def _unet(backbone: UNet) -> int:
    embedding = 4 * backbone.width
    widths = [backbone.width * factor for factor in backbone.multipliers]

    def block(inputs: int, outputs: int) -> int:
        convolutions = _linear(9 * inputs, outputs) + _linear(9 * outputs, outputs)
        skip = _linear(inputs, outputs) if inputs != outputs else 0
        return convolutions + skip + _linear(embedding, outputs) + 2 * (inputs + outputs)

    def attention(level: int) -> int:
        attended = backbone.shape[1] >> level in backbone.attention
        return 4 * _linear(widths[level], widths[level]) + 2 * widths[level] if attended else 0

    total = _linear(9 * backbone.shape[0], widths[0]) + _embeddings(backbone, embedding)
    total += backbone.outputs * _linear(9 * widths[0], backbone.shape[0])
    skips = [widths[0]]
    now = widths[0]
    for level, width in enumerate(widths):
        for _ in range(backbone.depth):
            total += block(now, width) + attention(level)
            now = width
            skips.append(now)
        if level < len(widths) - 1:
            total += block(now, now)
            skips.append(now)
    total += 2 * block(now, now) + 4 * _linear(now, now) + 2 * now
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(backbone.depth + 1):
            total += block(now + skips.pop(), width)
            now = width
        total += attention(level)
        if level:
            total += block(now, now)
    return total + 2 * now


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def shard_bytes(latents: Latents, tokenizer: Tokenizer, images: int) -> int:
    """Tar shards with ``images`` images: a label and an array each."""
    item = {"float16": 2, "float32": 4}[latents.dtype]
    array = (2 if latents.flip else 1) * prod(tokenizer.stored) * item + NPY_HEADER
    return images * (3 * BLOCK + -(-array // BLOCK) * BLOCK)


def image_bytes(images: int, channels: int, resolution: int) -> int:
    """A tar of uint8 images, but for the headers of its batches."""
    return images * channels * resolution**2


def reference_bytes(
    protocol: Protocol, extractor: Backbone | None, images: int, width: int | None = None
) -> int | None:
    """Statistics, and features of ``images`` real ones if they are compared; None if the width is unknown."""
    width = width or getattr(extractor, "features", None)
    if width is None and protocol.features.isdecimal():
        width = int(protocol.features)
    if width is None:
        return None
    return 8 * (width * width + width) + (4 * images * width if protocol.compares_images else 0)
