"""Compiled blocks run compiled, or fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.compilation import compile_blocks


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return 2 * x


def network(*blocks: nn.Module) -> nn.Module:
    net = nn.Module()
    net.blocks = nn.ModuleList(blocks)
    return net


def test_more_graphs_than_torch_allows_by_itself():
    sizes = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        sizes.append(tuple(inputs[-1].shape))
        return graph.forward

    net = network(Block(), Block())
    with torch._dynamo.config.patch(recompile_limit=2):
        compile_blocks(net, counting)
        for size in (2, 3, 4, 5):
            for block in net.blocks:
                block(torch.ones(size))
    assert sizes == [(2,), (3,), (4,), (5,)]


def test_what_cannot_be_compiled_is_an_error():
    net = network(Broken())
    compile_blocks(net, "eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        net.blocks[0](torch.ones(2))
