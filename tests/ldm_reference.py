"""The autoencoder of latent diffusion once more, from its description and by its own names.

Plain functions on a mapping of tensors, as far as possible from the library that the package uses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from fewstep.config.settings import LdmAutoencoder

State = dict[str, Tensor]
TINY = LdmAutoencoder(channels=32, multipliers=[1, 2], blocks=1, attention=[1])


def shapes(net: LdmAutoencoder, z: int) -> dict[str, list[int]]:
    """Names and shapes of all tensors for ``z`` latent channels."""
    return dict(_shapes(net, z))


def _shapes(net: LdmAutoencoder, z: int) -> Iterator[tuple[str, list[int]]]:
    def conv(name: str, out: int, into: int, side: int = 3) -> Iterator[tuple[str, list[int]]]:
        yield f"{name}.weight", [out, into, side, side]
        yield f"{name}.bias", [out]

    def norm(name: str, width: int) -> Iterator[tuple[str, list[int]]]:
        yield f"{name}.weight", [width]
        yield f"{name}.bias", [width]

    def block(name: str, into: int, out: int) -> Iterator[tuple[str, list[int]]]:
        yield from norm(f"{name}.norm1", into)
        yield from conv(f"{name}.conv1", out, into)
        yield from norm(f"{name}.norm2", out)
        yield from conv(f"{name}.conv2", out, out)
        if into != out:
            yield from conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name: str, width: int) -> Iterator[tuple[str, list[int]]]:
        yield from norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from conv(f"{name}.{part}", width, width, 1)

    def middle(name: str, width: int) -> Iterator[tuple[str, list[int]]]:
        yield from block(f"{name}.block_1", width, width)
        yield from attention(f"{name}.attn_1", width)
        yield from block(f"{name}.block_2", width, width)

    widths = [net.channels * factor for factor in net.multipliers]
    top = len(widths) - 1
    yield from conv("encoder.conv_in", widths[0], 3)
    width = widths[0]
    for level, out in enumerate(widths):
        for k in range(net.blocks):
            yield from block(f"encoder.down.{level}.block.{k}", width, out)
            width = out
            if level in net.attention:
                yield from attention(f"encoder.down.{level}.attn.{k}", width)
        if level != top:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width)
    yield from middle("encoder.mid", width)
    yield from norm("encoder.norm_out", width)
    yield from conv("encoder.conv_out", 2 * z, width)
    yield from conv("decoder.conv_in", width, z)
    yield from middle("decoder.mid", width)
    for level in reversed(range(len(widths))):
        for k in range(net.blocks + 1):
            yield from block(f"decoder.up.{level}.block.{k}", width, widths[level])
            width = widths[level]
            if level in net.attention:
                yield from attention(f"decoder.up.{level}.attn.{k}", width)
        if level != 0:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from norm("decoder.norm_out", width)
    yield from conv("decoder.conv_out", 3, width)
    yield from conv("quant_conv", 2 * z, 2 * z, 1)
    yield from conv("post_quant_conv", z, z, 1)


def weights(net: LdmAutoencoder, z: int, seed: int = 0) -> State:
    """Random weights that keep activations of order one, with nothing left at a neutral value."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes(net, z).items():
        spread = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        state[name] = torch.randn(shape, generator=draw) * spread + offset
    return state


def save_checkpoint(path: Path, state: State, **extra: Any) -> None:
    """A Lightning checkpoint as the authors' training leaves it: with all that was trained beside."""
    others = {
        "foundation_model.blocks.0.weight": torch.zeros(2),
        "linear_proj.weight": torch.zeros(2, 2, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(3),
    }
    moments = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": []}
    checkpoint = {"epoch": 1, "state_dict": {**state, **others}, "optimizer_states": [moments], **extra}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)


def _conv(state: State, name: str, x: Tensor, **options: Any) -> Tensor:
    return nnf.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options)


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    return nnf.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def _block(state: State, name: str, x: Tensor) -> Tensor:
    def half(k: int, h: Tensor) -> Tensor:
        h = _norm(state, f"{name}.norm{k}", h)
        return _conv(state, f"{name}.conv{k}", h * h.sigmoid(), padding=1)

    h = half(2, half(1, x))
    shortcut = f"{name}.nin_shortcut"
    return h + (_conv(state, shortcut, x) if f"{shortcut}.weight" in state else x)


def _attention(state: State, name: str, x: Tensor) -> Tensor:
    h = _norm(state, f"{name}.norm", x)
    q, k, v = (_conv(state, f"{name}.{part}", h).flatten(2) for part in "qkv")
    weight = torch.einsum("bci,bcj->bij", q, k).mul(x.shape[1] ** -0.5).softmax(-1)
    return x + _conv(state, f"{name}.proj_out", torch.einsum("bij,bcj->bci", weight, v).view_as(x))


def _middle(state: State, name: str, x: Tensor) -> Tensor:
    x = _attention(state, f"{name}.attn_1", _block(state, f"{name}.block_1", x))
    return _block(state, f"{name}.block_2", x)


def _out(state: State, name: str, x: Tensor) -> Tensor:
    x = _norm(state, f"{name}.norm_out", x)
    return _conv(state, f"{name}.conv_out", x * x.sigmoid(), padding=1)


def moments(state: State, net: LdmAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior."""
    x = _conv(state, "encoder.conv_in", x, padding=1)
    for level in range(len(net.multipliers)):
        for k in range(net.blocks):
            x = _block(state, f"encoder.down.{level}.block.{k}", x)
            if level in net.attention:
                x = _attention(state, f"encoder.down.{level}.attn.{k}", x)
        if level != len(net.multipliers) - 1:
            padded = nnf.pad(x, (0, 1, 0, 1))
            x = _conv(state, f"encoder.down.{level}.downsample.conv", padded, stride=2)
    x = _out(state, "encoder", _middle(state, "encoder.mid", x))
    mean, logvar = _conv(state, "quant_conv", x).chunk(2, 1)
    return mean, (logvar.clamp(-30, 20) / 2).exp()


def decode(state: State, net: LdmAutoencoder, z: Tensor) -> Tensor:
    """Images, not clamped."""
    x = _conv(state, "decoder.conv_in", _conv(state, "post_quant_conv", z), padding=1)
    x = _middle(state, "decoder.mid", x)
    for level in reversed(range(len(net.multipliers))):
        for k in range(net.blocks + 1):
            x = _block(state, f"decoder.up.{level}.block.{k}", x)
            if level in net.attention:
                x = _attention(state, f"decoder.up.{level}.attn.{k}", x)
        if level != 0:
            x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
            x = _conv(state, f"decoder.up.{level}.upsample.conv", x, padding=1)
    return _out(state, "decoder", x)
