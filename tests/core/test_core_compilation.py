"""Compiled blocks run compiled, or fail."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.compilation import check_compiler, compile_blocks


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


def test_inductor_without_a_compiler_is_refused_in_one_line(monkeypatch, tmp_path):
    """An executable that the variable names will do, and no other backend wants any."""
    monkeypatch.setenv("PATH", "")
    for variable, device in (("CXX", "cpu"), ("CC", "cuda")):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ValueError, match=rf"^--compile: no compiler g.* \(variable {variable}\); .+$"):
            check_compiler("--compile", "inductor", device)
        monkeypatch.setenv(variable, str(tmp_path / "cc"))
    check_compiler("--compile", "aot_eager", "cpu")
    (tmp_path / "cc").touch(mode=0o755)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ValueError, match=r"^--compile: no .*Python\.h .+$"):
        check_compiler("--compile", "inductor", "cpu")
    (tmp_path / "Python.h").touch()
    for device in ("cpu", "cuda"):
        check_compiler("--compile", "inductor", device)


def test_what_cannot_be_compiled_is_an_error():
    net = network(Broken())
    compile_blocks(net, "eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):
        net.blocks[0](torch.ones(2))
