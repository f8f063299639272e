"""What attention's kernel computes under Triton's interpreter, as JSON: a process of its own, because Triton
reads TRITON_INTERPRET when it is imported.

    TRITON_INTERPRET=1 python tests/core/attention_cases.py
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.bench.meters import peak_bytes
from fewstep.core import attention_kernel, dual
from fewstep.core.dual import Dual
from fewstep.core.operations import OperationCounter

# Queries, keys, channels of a head, and heads; no length is a multiple of a block.
SHAPES = {
    "one block": (5, 7, 16, 3),
    "several": (150, 150, 72, 1),
    "fewer keys": (70, 37, 64, 2),
    "fewer queries": (33, 101, 128, 2),
    "joint, 40 channels": (90, 70, 40, 1),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE = 512


def inputs(tokens: int, keys: int, channels: int, heads: int, dtype: torch.dtype) -> list[Tensor]:
    """q, dq, k, dk, v, dv for two samples."""
    draws = torch.Generator().manual_seed(tokens)
    lengths = (tokens, tokens, keys, keys, keys, keys)
    return [torch.randn(2, heads, n, channels, generator=draws).to(dtype) for n in lengths]


def attention(q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor, **options) -> Dual:
    return F.scaled_dot_product_attention(Dual(q, dq), Dual(k, dk), Dual(v, dv), **options)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.isfinite().all() and found.shape == exact.shape
    return float((found.double() - exact).norm() / exact.norm())


def errors(given: list[Tensor], **options) -> dict[str, float]:
    """Of kernel and rule, relative to float64, by functorch."""
    exact = torch.func.jvp(
        lambda q, k, v: (options.get("scale", q.shape[-1] ** -0.5) * q @ k.mT).softmax(-1) @ v,
        tuple(z.double() for z in given[::2]),
        tuple(z.double() for z in given[1::2]),
    )[1]
    found = {}
    for name, use in {"kernel": True, "rule": False}.items():
        dual.use_attention_kernel(use)
        found[name] = error(attention(*given, **options).tangent, exact)
    return found


def alike(given: list[Tensor], **options) -> bool:
    """Whether the switch changes nothing."""
    found = []
    for use in (True, False):
        dual.use_attention_kernel(use)
        found.append(attention(*given, **options).tangent)
    return torch.equal(*found)


def main() -> None:
    torch.set_num_threads(1)
    assert attention_kernel.INTERPRETED.value
    found: dict[str, object] = {}
    small = inputs(20, 20, 16, 2, torch.float32)
    found["short attention keeps the rule"] = alike(small)
    attention_kernel.LONG = 1
    found["the kernel is another"] = not alike(small)
    found["causal attention keeps the rule"] = alike(small, is_causal=True)
    found["a mask keeps the rule"] = alike(small, attn_mask=torch.zeros(20, 20))
    found["float64 keeps the rule"] = alike([z.double() for z in small])
    found["channels without a block keep the rule"] = alike([z[..., :12] for z in small])
    found["errors"] = {
        f"{name}, {precision}": errors(inputs(*shape, dtype))
        for name, shape in SHAPES.items()
        for precision, dtype in DTYPES.items()
        if precision == "float32" or name != "one block"
    }
    found["errors"]["scaled, float32"] = errors(small, scale=0.7)

    # Tensors as a network has them: parts of one, with heads behind tokens, and some without a tangent.
    parts = torch.randn(2, 40, 6, 2, 16, generator=torch.Generator().manual_seed(1)).permute(2, 0, 3, 1, 4)
    found["errors"]["strided, float32"] = errors([*parts])
    found["errors"]["odd strides, float32"] = errors([F.pad(z, (1, 0))[..., 1:] for z in parts])
    q, _, k, _, v, dv = parts
    dual.use_attention_kernel(True)
    only = F.scaled_dot_product_attention(q, k, Dual(v, dv)).tangent
    found["errors"]["values alone, float32"] = {
        "kernel": error(only, (q.double() @ k.double().mT / 4).softmax(-1) @ dv.double())
    }
    found["tokens are a view"] = only.transpose(1, 2).flatten(2).data_ptr() == only.data_ptr()

    # What all keys and values have in common is not rounded away.
    shared = inputs(40, 90, 16, 1, torch.float16)
    shared[2] += 3 * torch.randn(16, generator=torch.Generator().manual_seed(2)).half()
    shared[4] += 3
    found["shared"] = errors(shared)

    # Value with graph, tangent without; compiled as one graph, counted as the rule's products.
    def outcome(*given: Tensor) -> tuple[Tensor, Tensor]:
        result = attention(*given)
        return result.value, result.tangent

    dual.use_attention_kernel(True)
    weights = inputs(20, 24, 16, 2, torch.float32)
    for z in weights[::2]:
        z.requires_grad_()
    value, tangent = outcome(*weights)
    found["graphs"] = [value.requires_grad, tangent.requires_grad]
    value.square().sum().backward()
    expected = [z.detach().requires_grad_() for z in weights[::2]]
    F.scaled_dot_product_attention(*expected).square().sum().backward()
    found["gradients"] = all(torch.equal(z.grad, other.grad) for z, other in zip(weights[::2], expected))
    compiled = torch.compile(outcome, backend="aot_eager", fullgraph=True)(*weights)
    found["compiled"] = torch.equal(compiled[1], tangent)
    counts = []
    for use in (True, False):
        dual.use_attention_kernel(use)
        with OperationCounter() as counted:
            outcome(*weights)
        counts.append(counted.total)
    found["operations"] = counts

    given = inputs(LARGE, LARGE, 16, 1, torch.float16)
    value = F.scaled_dot_product_attention(*given[::2])
    found["bytes"] = peak_bytes(partial(attention_kernel.attention_tangent, *given, value, 0.25))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
