"""The generative equilibrium transformer against its equations, written out (arXiv 2401.08639, section 4)."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils import checkpoint

from fewstep.backbones import build
from fewstep.bench.estimate import operations, parameters
from fewstep.config.backbones import Get
from fewstep.training.parallel import apply_compile_and_checkpointing


def spec(**changes) -> Get:
    values = {"kind": "get", "shape": [2, 4, 6], "classes": 3, "width": 8, "heads": 2, "depth": 2, "tied": 2}
    return Get(**values | {"mlp_ratio": 2.0, "tied_mlp_ratio": 3.0, "iterations": 4} | changes)


def network(one: Get) -> nn.Module:
    """In float64, with no weight at its initial constant."""
    torch.manual_seed(3)
    net = build(one).double()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn_like(weight))
    return net


def inputs(one: Get) -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(4)
    x = torch.randn(3, *one.shape, generator=draws, dtype=torch.float64)
    t, s = torch.rand(2, 3, generator=draws, dtype=torch.float64)
    return x, t, s, torch.tensor([0, 2, one.null])


def layer_norm(h: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = h - h.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[name + ".weight"]
        + w[name + ".bias"]
    )


def affine(h: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return torch.einsum("bnd,ed->bne", h, w[name + ".weight"]) + w[name + ".bias"]


def block(h: Tensor, added: Tensor, w: dict[str, Tensor], name: str, heads: int) -> Tensor:
    """One transformer block, head by head."""
    qkv = affine(layer_norm(h, w, name + ".norm1"), w, name + ".attn.qkv") + added
    q, k, v = qkv.chunk(3, -1)
    size = h.shape[-1] // heads
    mixed = []
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        scores = torch.exp(q[..., cut] @ k[..., cut].mT / math.sqrt(size))
        mixed.append(scores / scores.sum(-1, keepdim=True) @ v[..., cut])
    h = h + affine(torch.cat(mixed, -1), w, name + ".attn.proj")
    a = affine(layer_norm(h, w, name + ".norm2"), w, name + ".mlp.fc1")
    a = a * (1 + torch.erf(a / math.sqrt(2))) / 2
    return h + affine(a, w, name + ".mlp.fc2")


def by_hand(one: Get, w: dict[str, Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    """Images after each iteration that has a gradient."""
    channels, height, width = one.shape
    p, rows, columns = one.patch, height // one.patch, width // one.patch
    tokens = []
    for row in range(rows):
        for column in range(columns):
            patch = x[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p]
            kernel = w["x_embedder.proj.weight"]
            tokens.append(torch.einsum("bcij,dcij->bd", patch, kernel) + w["x_embedder.proj.bias"])
    h = torch.stack(tokens, 1) + w["pos_embed"]
    label = w["y_embedder.embedding_table.weight"][y][:, None] if one.conditional else 0.0
    for i in range(one.depth):
        h = block(h, label, w, f"injection.{i}", one.heads)
    u = torch.einsum("bnd,ed->bne", h, w["equilibrium.inject.weight"]).split(3 * one.width, -1)
    z, images = w["equilibrium.start"] + torch.zeros_like(h), []
    for k in range(one.iterations):
        for i in range(one.tied):
            z = block(z, u[i] + label, w, f"equilibrium.blocks.{i}", one.heads)
        if k < one.without_gradient:
            z = z.detach()
            continue
        patches = affine(layer_norm(z, w, "norm"), w, "final_layer")
        image = patches.reshape(len(x), rows, columns, p, p, channels)
        image = torch.einsum("brcijk->bkricj", image)
        images.append(image.reshape(x.shape))
    return images


@pytest.mark.parametrize(
    "changes", [{}, {"conditional": False}, {"without_gradient": 2}, {"iterations": 1}, {"tied": 1}]
)
def test_iterates_and_their_gradients_are_those_of_the_equations(changes):
    """To 1e-10, of a sum over all iterates: of the phantom gradient where the first ones have none."""
    one = spec(**changes)
    net = network(one)
    x, t, s, y = inputs(one)
    state = {name: value.detach().clone() for name, value in net.state_dict().items()}
    trained = {name: state[name].requires_grad_() for name, w in net.named_parameters() if w.requires_grad}
    expected = by_hand(one, state, x, y)
    found = net(x, t, s, y, iterates=True)
    assert len(found) == len(expected) == one.iterations - one.without_gradient
    weights = [torch.sin(x + k) for k in range(len(expected))]
    for value, image in zip(found, expected, strict=True):
        torch.testing.assert_close(value, image - x, rtol=0, atol=1e-10)
    torch.testing.assert_close(net(x, t, s, y), found[-1], rtol=0, atol=1e-12)
    ours = torch.autograd.grad(
        sum((f * w).sum() for f, w in zip(found, weights)), [net.get_parameter(name) for name in trained]
    )
    theirs = torch.autograd.grad(
        sum((g * w).sum() for g, w in zip(expected, weights)), list(trained.values())
    )
    for name, a, b in zip(trained, ours, theirs, strict=True):
        assert float(b.abs().max()) > 1e-6, name
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, msg=name)


def test_one_iteration_is_a_plain_transformer():
    """As many blocks, one after the other, as there are tied ones."""
    one = spec(iterations=1)
    net = network(one)
    x, t, s, y = inputs(one)
    h = net.x_embedder(x) + net.pos_embed
    c = net.y_embedder(y)[:, None]
    for layer in net.injection:
        h = layer(h, c)
    z = net.equilibrium.start.expand(len(x), -1, -1)
    for layer, u in zip(net.equilibrium.blocks, net.equilibrium.inject(h).chunk(one.tied, -1), strict=True):
        z = layer(z, u + c)
    assert torch.equal(net(x, t, s, y), net._decoded(z, x))


def test_it_starts_as_minus_the_noise_and_knows_no_times():
    one = spec()
    torch.manual_seed(0)
    x, t, s, y = inputs(one)
    assert torch.equal(build(one).double()(x, t, s, y), -x)
    net = network(one)
    assert torch.equal(net(x, t, s, y), net(x, 1 - t, None, y))


def test_further_iterations_come_nearer_to_a_fixed_point():
    """Where the tied block contracts, states differ less and less."""
    one = spec(iterations=12, tied=1)
    torch.manual_seed(1)
    net = build(one).double()
    with torch.no_grad():
        for weight in net.equilibrium.blocks.parameters():
            weight.mul_(0.3)
    net.final_layer.weight.data.normal_()
    x, t, s, y = inputs(one)
    steps = net(x, t, s, y, iterates=True).diff(dim=0).flatten(1).norm(dim=1)
    assert bool((steps[-3:] < steps[0]).all())


def test_recomputed_blocks_give_the_same_gradients(monkeypatch):
    """Each tied block is recomputed once for each of its calls."""
    one = spec()
    x, t, s, y = inputs(one)
    plain, recomputed = network(one), network(one)
    apply_compile_and_checkpointing(recomputed, checkpoint=True)
    calls = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    for net in (plain, recomputed):
        net(x, t, s, y, iterates=True).square().sum().backward()
    assert len(calls) == one.depth + one.iterations * one.tied
    for a, b in zip(plain.parameters(), recomputed.parameters(), strict=True):
        assert a.grad is None if not a.requires_grad else torch.equal(a.grad, b.grad)


def test_units_are_called_once_in_a_forward():
    """So FSDP2 reduces the gradients of tied weights once."""
    one = spec()
    net = network(one)
    calls: dict[int, int] = {}
    for number, unit in enumerate(net.units):
        unit.register_forward_hook(lambda *_, n=number: calls.update({n: calls.get(n, 0) + 1}))
    net(*inputs(one))
    assert set(calls) == set(range(one.depth + 1)) and set(calls.values()) == {1}
    inside = {id(w) for unit in net.units for w in unit.parameters()}
    assert {id(w) for b in net.blocks for w in b.parameters()} <= inside


SIZES = {
    "get-t-cifar10": 8.6e6,
    "get-m-cifar10": 19.2e6,
    "get-s-cifar10": 37.2e6,
    "get-b-cifar10": 62.2e6,
    "get-b-plus-cifar10": 83.5e6,
    "get-b-cifar10-labels": 62.2e6,
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_paper(name, paper_plan):
    assert parameters(paper_plan.parts.backbones[name]) == pytest.approx(SIZES[name], rel=0.01)


def test_operations_are_counted_for_every_iteration():
    few, many = (operations(spec(iterations=n)) for n in (1, 4))
    tokens, width = 6, 8
    linear = 2 * tokens * (4 * width**2 + 2 * 3 * width**2)
    attention = 4 * tokens**2 * width
    assert many - few == 3 * 2 * (linear + attention)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "multiple of 4"),
        ({"patch": 4}, "does not divide"),
        ({"without_gradient": 4}, "must leave one of the 4"),
        ({"target_time": True}, "target_time"),
        ({"outputs": 2}, "outputs"),
    ],
)
def test_impossible_networks_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        spec(**change)
