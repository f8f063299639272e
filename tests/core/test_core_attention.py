"""Attention's kernel, which runs here in Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from attention_cases import LARGE, SHAPES, alike, inputs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from fewstep import train  # noqa: E402
from fewstep.config import ConfigError  # noqa: E402
from fewstep.core import attention_kernel, dual  # noqa: E402

LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Largest error of a tangent relative to its norm. The interpreter cuts off what does not fit into bfloat16,
where a GPU rounds to nearest, which is 2.5 times as exact."""


@pytest.fixture(scope="module")
def found():
    script = Path(__file__).with_name("attention_cases.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    if "only 0-dimensional arrays can be converted to Python scalars" in done.stderr:
        pytest.skip("the interpreter of Triton 3.6 needs numpy < 2.4")
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_without_a_gpu_the_switch_changes_nothing(monkeypatch):
    monkeypatch.setattr(dual, "_kernel", None)
    assert alike(inputs(1024, 1024, 16, 1, torch.float32))


def test_a_training_has_an_option_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(dual, "_kernel", None)
    names = ("spec", "out", "latents", "curve")
    given = [word for name in names for word in (f"--{name}", str(tmp_path / name))]
    for option, module in {"--attention-kernel": attention_kernel, "--no-self-test": None}.items():
        with pytest.raises(ConfigError, match="spec"):
            train.main([*given, option])
        assert dual._kernel is module


@pytest.mark.slow
def test_tangents_are_those_of_functorch(found):
    assert len(found["errors"]) > 3 * len(SHAPES)
    for name, errors in found["errors"].items():
        limit = LIMITS[name.rpartition(", ")[2]]
        assert 0 < errors["kernel"] < limit, name


@pytest.mark.slow
def test_what_is_common_is_not_rounded(found):
    """A mean that all keys have adds to every score's tangent and cancels; the rule loses digits by it."""
    assert found["shared"]["kernel"] < found["shared"]["rule"] / 5 < 2e-3


@pytest.mark.slow
def test_where_the_kernel_is_used(found):
    names = [name for name in found if "keep" in name]
    assert len(names) == 5 and all(found[name] for name in names)
    assert found["the kernel is another"] and found["tokens are a view"]


@pytest.mark.slow
def test_the_value_has_its_graph_and_the_tangent_none(found):
    assert found["graphs"] == [True, False] and found["gradients"]


@pytest.mark.slow
def test_compiled_it_is_one_operator_that_is_counted(found):
    assert found["compiled"] and found["operations"][0] == found["operations"][1] > 0


@pytest.mark.slow
def test_nothing_is_allocated_but_the_tangent(found):
    """The scores of a head would be 32 times as much."""
    assert found["bytes"] == 2 * LARGE * 16 * 2


@pytest.mark.slow
@pytest.mark.parametrize("channels", [72, 128])
@pytest.mark.parametrize(
    ("capability", "shared", "instruction"), [(80, 163, "mma.sync"), (90, 227, "wgmma")], ids=["A100", "H100"]
)
def test_it_compiles_for_a_gpu(channels, capability, shared, instruction, tmp_path, monkeypatch):
    """With matrix instructions, loads of 16 bytes, and less shared memory (KiB) than there is."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    how = attention_kernel._blocks(channels, torch.bfloat16)
    options = {name: how.pop(name) for name in ("num_warps", "num_stages")}
    kinds = dict.fromkeys(("heads", "tokens", "keys"), "i32") | {"scale": "fp32"}
    signature, attributes = {}, {}
    for place, name in enumerate(attention_kernel._tangent.arg_names):
        if name in how:
            signature[name] = "constexpr"
        elif name.endswith("_strides"):
            signature[name] = ("i32",) * 3
        elif name in kinds:
            signature[name] = kinds[name]
        else:
            signature[name], attributes[(place,)] = "*bf16", [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(attention_kernel._tangent, signature, how, attributes)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert found.metadata.shared <= shared * 1024
    assert instruction in found.asm["ptx"] and "ld.global.v4" in found.asm["ptx"]
