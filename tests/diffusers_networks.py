"""Tiny random networks of diffusers as ``net(x, t, s, y)``: its classes unchanged, on tiny_sd3's captions.

Where a network embeds guidance, 1 - s stands for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, SanaTransformer2DModel
from tiny_sd3 import CONTEXT, POOLED, TOKENS, Store, awake, network, sd3
from torch import Tensor, nn

from fewstep.backbones.lora import add_adapters
from fewstep.config.backbones import Lora

SPEED = 20.0
"""Angle in rad by which the fastest sinusoid of a time turns from noise to data."""
SIDE, CHANNELS = 4, 4
IMAGE = (1, SIDE, SIDE)
"""Frames, rows and columns."""
SIZES = {"num_attention_heads": 2, "attention_head_dim": 8}
ADAPTERS = Lora(
    rank=4,
    targets=["to_q", "to_k", "to_v", "to_out.0", "timestep_embedder.linear_1", "timestep_embedder.linear_2"],
)


class Network(nn.Module):
    """A transformer of diffusers with the names that this project's tools ask for."""

    def __init__(self, transformer: nn.Module, shape: tuple[int, ...], blocks: list[nn.Module]) -> None:
        super().__init__()
        self.transformer, self.shape, self.blocks = transformer, shape, blocks
        self.text = Store()

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Any:
        context, pooled = (part.to(self.transformer.dtype) for part in self.text(y))
        counts = torch.arange(TOKENS, device=y.device) < 2 + y[:, None] % (TOKENS - 1)
        given = self.arguments(SPEED * (1 - t), SPEED * (1 - (t if s is None else s)), pooled, counts)
        return self.transformer(x, encoder_hidden_states=context, return_dict=False, **given)[0]

    def arguments(self, time: Tensor, guidance: Tensor, pooled: Tensor, counts: Tensor) -> dict[str, Any]:
        """What the transformer takes besides latents and context; ``counts`` masks the padding."""
        raise NotImplementedError


class Flux(Network):
    """Two streams, then one; positions by rotation, in real numbers."""

    def __init__(self, guidance: bool = False) -> None:
        transformer = FluxTransformer2DModel(
            **SIZES,
            in_channels=CHANNELS,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=POOLED,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=guidance,
        )
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        super().__init__(transformer, (SIDE**2, CHANNELS), blocks)

    def arguments(self, time, guidance, pooled, counts):
        places = (torch.arange(size, device=time.device) for size in IMAGE)
        return {
            "pooled_projections": pooled,
            "timestep": time / 1000,
            "guidance": guidance / 1000 if self.transformer.config.guidance_embeds else None,
            "img_ids": torch.cartesian_prod(*places),
            "txt_ids": torch.zeros(TOKENS, 3, device=time.device),
        }


class Sana(Network):
    """Linear attention in float32, attention to a masked caption, convolutions."""

    def __init__(self, **options: Any) -> None:
        transformer = SanaTransformer2DModel(
            **SIZES,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=CONTEXT,
            sample_size=SIDE,
            **options,
        )
        super().__init__(transformer, (CHANNELS, SIDE, SIDE), [*transformer.transformer_blocks])

    def arguments(self, time, guidance, pooled, counts):
        embedded = self.transformer.config.guidance_embeds
        return {
            "timestep": time,
            "guidance": guidance if embedded else None,
            "encoder_attention_mask": counts,
        }


class QwenImage(Network):
    """Two streams, a masked caption; positions by rotation, in complex numbers.

    With ``zero_cond_t`` the lower half of the image is a picture to edit, at a time of its own.
    """

    def __init__(self, zero_cond_t: bool = False) -> None:
        transformer = QwenImageTransformer2DModel(
            **SIZES,
            in_channels=CHANNELS,
            out_channels=1,
            num_layers=2,
            joint_attention_dim=CONTEXT,
            axes_dims_rope=(2, 2, 4),
            zero_cond_t=zero_cond_t,
        )
        super().__init__(transformer, (SIDE**2, CHANNELS), [*transformer.transformer_blocks])

    def arguments(self, time, guidance, pooled, counts):
        halves = [(1, SIDE // 2, SIDE)] * 2
        images = halves if self.transformer.config.zero_cond_t else [IMAGE]
        return {
            "timestep": time / 1000,
            "encoder_hidden_states_mask": counts,
            "img_shapes": [images] * len(time),
        }


def build(
    kind: Callable[[], Network], lora: bool = False, dtype: torch.dtype = torch.float32, seed: int = 3
) -> Network:
    """A network, for a seed always the same, with nothing at zero; of adapters, only they are trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind()
        if lora:
            add_adapters(net.transformer, ADAPTERS)
        awake(net, frozen=True)
    return net.to(dtype)


def sd3_network(dtype: torch.dtype = torch.float32, seed: int = 3, **changes: Any) -> nn.Module:
    """SD3 as a backbone; ``shape`` as that of the others."""
    spec = sd3(**changes)
    net = network(spec, dtype, seed=seed)
    net.shape = spec.shape
    return net


FLUX = {"flux": Flux, "flux with guidance": partial(Flux, guidance=True)}
SANA = {
    "sana": Sana,
    "sana sprint": partial(
        Sana, guidance_embeds=True, qk_norm="rms_norm_across_heads", interpolation_scale=1.0
    ),
}
QWEN = {"qwen-image": QwenImage, "qwen-image edit": partial(QwenImage, zero_cond_t=True)}
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    name + end: partial(build, kind, lora)
    for name, kind in (FLUX | SANA | QWEN).items()
    for end, lora in (("", False), (" with adapters", True))
}
"""By name, functions of a dtype and a seed."""
