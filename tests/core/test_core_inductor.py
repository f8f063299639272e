"""Blocks compiled to machine code: minutes on a busy machine, and a C++ compiler."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_core_fused import ROWS, distance, gradients, loss, student

from fewstep.training.parallel import apply_compile_and_checkpointing


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on a CPU")
def test_inductor_has_the_gradient_of_eager_blocks(tmp_path, monkeypatch):
    """Value and tangent in one compiled graph, recomputed in its backward; nothing from an earlier cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    found = []
    for compiler in ("", "inductor"):
        net = student().float()
        del net.blocks[1:]
        apply_compile_and_checkpointing(net, checkpoint=True, compile=compiler)
        loss("facm", 0, net, slice(0, ROWS), dtype=torch.float32).backward()
        found.append(gradients(net))
    assert list(tmp_path.iterdir())
    assert 0 < distance(*found) < 1e-4
