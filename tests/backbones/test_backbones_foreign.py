"""Networks of diffusers, which know nothing of duals: value, tangent and gradient are those of functorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from child_processes import in_two_processes
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from test_backbones_formulations import TOLERANCES
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fewstep.core.jvp import value_and_tangent
from fewstep.training.parallel import full_tensor, shard


class Sd3(nn.Module):
    """Stable Diffusion 3's transformer as net(x, t, s, y), with one block of two attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        self.blocks = self.transformer.transformer_blocks
        self.register_buffer("prompts", torch.randn(4, 5, 12))
        self.register_buffer("pooled", torch.randn(4, 10))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        return -self.transformer(
            x * s[:, None, None, None],
            encoder_hidden_states=self.prompts[y],
            pooled_projections=self.pooled[y],
            timestep=1000 * (1 - t),
            return_dict=False,
        )[0]


class Flux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=(2, 2, 4),
            guidance_embeds=False,
        )
        self.register_buffer("prompts", torch.randn(4, 5, 12))
        self.register_buffer("pooled", torch.randn(4, 10))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        tokens = self.transformer(
            hidden_states=x.flatten(2).transpose(1, 2),
            encoder_hidden_states=self.prompts[y],
            pooled_projections=self.pooled[y] * s[:, None],
            timestep=1 - t,
            img_ids=torch.cartesian_prod(*map(torch.arange, (1, *x.shape[2:]))).to(x.dtype),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:])


def made(kind: type[nn.Module], lora: bool = False) -> nn.Module:
    """Small, float64, with random weights everywhere; always the same."""
    torch.manual_seed(0)
    net = kind().double()
    for weight in net.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    if lora:
        from peft import LoraConfig

        net.transformer.requires_grad_(False)
        net.transformer.add_adapter(LoraConfig(r=3, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        net.double()
    return net


def evaluate(net: nn.Module, formulation: str, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Value, tangent and the gradient of a loss that uses both, over some of four rows."""
    draws = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, 4, 4, 8, 8, generator=draws, dtype=torch.float64)[:, rows]
    t, s, dt, ds = torch.rand(4, 4, generator=draws, dtype=torch.float64)[:, rows]
    y = torch.tensor([0, 3, 2, 3])[rows]
    value, tangent = value_and_tangent(net, (x, t, s), (dx, dt, ds), y, formulation)
    assert not tangent.requires_grad
    (value * tangent + value.square()).mean().backward()
    gradients = [weight.grad for weight in net.parameters() if weight.grad is not None]
    gradient = torch.cat([full_tensor(gradient).flatten() for gradient in gradients])
    return {"value": value.detach(), "tangent": tangent, "gradient": gradient}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for part, limit in TOLERANCES["fused"]["float64"].items():
        assert expected[part].norm() > 0.1
        assert (found[part] - expected[part]).norm() <= limit * expected[part].norm(), part


@pytest.mark.parametrize("kind", [Sd3, Flux])
def test_equal_to_functorch(kind):
    assert_same(evaluate(made(kind), "fused"), evaluate(made(kind), "functorch"))


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
def test_adapters_of_peft():
    assert_same(evaluate(made(Sd3, lora=True), "fused"), evaluate(made(Sd3, lora=True), "functorch"))


def test_checkpointed_and_compiled_blocks():
    expected, net = evaluate(made(Sd3), "fused"), made(Sd3)
    net.transformer.enable_gradient_checkpointing()
    assert_same(evaluate(net, "fused"), expected)
    torch.compiler.reset()
    net = made(Sd3)
    for block in net.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    assert_same(evaluate(net, "fused"), expected)


def _share(rank: int, folder: Path) -> None:
    nets = {"ddp": DistributedDataParallel(made(Sd3)), "fsdp2": shard(made(Sd3), torch.device("cpu"), 2)}
    for layout, net in nets.items():
        found = evaluate(net, "fused", slice(2 * rank, 2 * rank + 2))
        if rank == 0:
            torch.save(found["gradient"], folder / f"{layout}.pt")


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(tmp_path):
    in_two_processes(_share, tmp_path)
    expected = evaluate(made(Sd3), "fused")["gradient"]
    for layout in ("ddp", "fsdp2"):
        found = torch.load(tmp_path / f"{layout}.pt", weights_only=True)
        assert (found - expected).norm() < 1e-12 * expected.norm(), layout
