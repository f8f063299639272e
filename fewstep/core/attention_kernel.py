"""The tangent of attention as one Triton kernel, which holds no scores in memory.

With scores Z = scale q k^T, P = softmax(Z) and H = P * Z', where ' is the tangent, the output o = P v has

    o' = P v' + H v - rowsum(H) o        (the rule of `attention` in dual.py)

A program of the kernel takes some rows of q and goes once over the keys, block by block, as FlashAttention
does (arXiv 2205.14135, algorithm 1): with the largest score m so far it keeps, of p = exp(Z - m),

    total = rowsum(p)    moved = rowsum(p * Z')    mixed = p v' + (p * Z') v

and in the end o' = (mixed - moved o) / total. P v' and H v need the same rescaling when m grows, so one sum
holds both. The value o comes from PyTorch's own attention, which has its graph; the tangent needs none.

The inputs are float32, bfloat16 or float16, the sums float32. Triton's blocks are powers of two: the channels
of a head are cut into the largest power of two and the rest, so that 72 are computed as 64 + 16, not as 128.

Errors of o' relative to float64, of normally distributed inputs: float32 4e-7, float16 3e-4 in Triton's
interpreter; bfloat16 2.4e-3 by the same steps in PyTorch, where dual.py's rule has 5e-3. (The interpreter
has 6e-3, because it cuts off what does not fit into bfloat16; a GPU rounds to nearest.)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

LONG = 1 << 20
"""Fewest scores of a head, queries times keys, for which the kernel is used: 1,024 tokens. Of 256 tokens with
72 channels another kernel, jvp-flash-attention, took twice the time of dual.py's rule on an H100. This one
has not been measured on a GPU; ``python -m fewstep.bench attention --large`` does so."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHANNELS = range(16, 129, 8)
"""Of a head. Rows of a multiple of 8 begin where 16 bytes can be loaded at once."""
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether Triton runs its kernels on the CPU, in Python: TRITON_INTERPRET=1."""
UNIT = tl.constexpr(8)
"""Strides are given in this many elements, so that the compiler knows that they are multiples of it."""


def applies(q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> bool:
    """Whether the tangent of the attention ``o`` is the kernel's to compute, by device, dtype and size."""
    return (
        (o.is_cuda or INTERPRETED.value)
        and o.dtype in DTYPES
        and o.dim() == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[-1] == v.shape[-1]
        and q.shape[-1] in CHANNELS
        and q.shape[-2] * k.shape[-2] >= LONG
    )


@torch.library.custom_op("fewstep::attention_tangent", mutates_args=())
def attention_tangent(
    q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor, o: Tensor, scale: float
) -> Tensor:
    """Tangent of ``o = softmax(scale q k^T) v``, without a graph and without a mask.

    An operator of PyTorch, so that compilers and counters of operations take it as one.

    Args:
        q, dq: queries and their tangents (B, heads, L, E), E in CHANNELS.
        k, dk, v, dv: keys and values (B, heads, S, E), with their tangents.
        o: the attention (B, heads, L, E) in one of DTYPES, to which the others are cast.

    Returns:
        (B, heads, L, E) in the dtype of ``o``, with heads next to channels in memory.
    """
    out = _like_tokens(o)
    tensors = [_in_units(z.to(o.dtype)) for z in (q, dq, k, dk, v, dv, o)] + [out]
    strides = [tuple(stride // UNIT.value for stride in z.stride()[:3]) for z in tensors]
    batch, heads, tokens, channels = q.shape
    how = _blocks(channels, o.dtype)
    programs = batch * heads * triton.cdiv(tokens, how["ROWS"])
    with torch.cuda.device_of(o):
        _tangent[(programs,)](*tensors, *strides, heads, tokens, k.shape[-2], scale, **how)
    return out


@attention_tangent.register_fake
def _(q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor, o: Tensor, scale: float) -> Tensor:
    return _like_tokens(o)


@register_flop_formula(torch.ops.fewstep.attention_tangent)
def _operations(q: torch.Size, dq: torch.Size, k: torch.Size, *_: Any, **__: Any) -> int:
    """Five products: q k^T, dq k^T, q dk^T, P dv and H v."""
    return int(5 * 2 * q.numel() * k[-2])


def _like_tokens(o: Tensor) -> Tensor:
    """Memory for (B, heads, L, E) in which (B, L, heads E) are a view."""
    return torch.empty_like(o.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _blocks(channels: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of the kernel, and Triton's options."""
    main = 1 << (channels.bit_length() - 1)
    rest = max(16, triton.next_power_of_2(channels - main)) if channels > main else 0
    # As many rows and keys as the registers of an A100 and an H100 hold, by their compiler's report.
    rows, keys = (32, 16) if dtype == torch.float32 else (128, 32)
    sizes = {"SIZE": channels, "MAIN": main, "REST": rest, "ROWS": rows, "KEYS": keys}
    return sizes | {"num_warps": 8, "num_stages": 2}


def _in_units(z: Tensor) -> Tensor:
    """``z``, copied if its channels are apart or its other strides no multiples of UNIT."""
    *strides, last = z.stride()
    return z if last == 1 and not any(stride % UNIT.value for stride in strides) else z.contiguous()


@triton.jit
def _places(tensor, strides, batch, head, rows, columns):
    """Pointers to some rows and columns of one head."""
    start = tensor + UNIT * (batch * strides[0] + head * strides[1])
    return start + UNIT * strides[2] * rows[:, None] + columns[None, :]


@triton.jit
def _load(tensor, strides, batch, head, rows, columns, exists):
    """Some rows and columns of one head; zeros for those that do not exist."""
    return tl.load(_places(tensor, strides, batch, head, rows, columns), mask=exists, other=0.0)


@triton.jit
def _dot(a, b, c):
    """a b + c."""
    if INTERPRETED:  # whose product takes the bits of bfloat16 for whole numbers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), c)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def _tangent(
    q,
    dq,
    k,
    dk,
    v,
    dv,
    o,
    out,
    q_strides,
    dq_strides,
    k_strides,
    dk_strides,
    v_strides,
    dv_strides,
    o_strides,
    out_strides,
    heads,
    tokens,
    keys,
    scale,
    SIZE: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """ROWS rows of ``out``. Of a name that ends in a digit, 0 has the first MAIN channels, 1 the REST."""
    blocks = tl.cdiv(tokens, ROWS)
    which = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = which // heads, which % heads
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    row0 = (rows < tokens)[:, None]
    part0 = tl.arange(0, MAIN)
    q0 = _load(q, q_strides, batch, head, rows, part0, row0)
    dq0 = _load(dq, dq_strides, batch, head, rows, part0, row0)
    mixed0 = tl.zeros([ROWS, MAIN], tl.float32)
    if REST:
        part1 = MAIN + tl.arange(0, REST)
        row1 = row0 & (part1 < SIZE)[None, :]
        q1 = _load(q, q_strides, batch, head, rows, part1, row1)
        dq1 = _load(dq, dq_strides, batch, head, rows, part1, row1)
        mixed1 = tl.zeros([ROWS, REST], tl.float32)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    moved = tl.zeros([ROWS], tl.float32)
    centre = tl.zeros([ROWS], tl.float32)
    for first in range(0, keys, KEYS):
        columns = first + tl.arange(0, KEYS)
        column0 = (columns < keys)[:, None]
        k0 = _load(k, k_strides, batch, head, columns, part0, column0).T
        dk0 = _load(dk, dk_strides, batch, head, columns, part0, column0).T
        Z = _dot(q0, k0, tl.zeros([ROWS, KEYS], tl.float32))
        dZ = _dot(q0, dk0, _dot(dq0, k0, tl.zeros([ROWS, KEYS], tl.float32)))
        if REST:
            column1 = column0 & (part1 < SIZE)[None, :]
            k1 = _load(k, k_strides, batch, head, columns, part1, column1).T
            dk1 = _load(dk, dk_strides, batch, head, columns, part1, column1).T
            Z = _dot(q1, k1, Z)
            dZ = _dot(q1, dk1, _dot(dq1, k1, dZ))
        # A number taken from a row of Z' changes nothing but the rounding: with the mean over the first keys
        # goes what all keys have in common.
        centre = tl.where(first == 0, tl.sum(dZ, 1) / KEYS, centre)
        # Powers of two, which the hardware has: exp(x) = exp2(1.4427 x).
        Z = tl.where((columns < keys)[None, :], Z * (scale * 1.4426950408889634), float("-inf"))
        higher = tl.maximum(m, tl.max(Z, 1))
        fade = tl.exp2(m - higher)
        m = higher
        p = tl.exp2(Z - m[:, None])
        h = p * ((dZ - centre[:, None]) * scale)
        total = total * fade + tl.sum(p, 1)
        moved = moved * fade + tl.sum(h, 1)
        p = p.to(q0.dtype)
        h = h.to(q0.dtype)
        v0 = _load(v, v_strides, batch, head, columns, part0, column0)
        dv0 = _load(dv, dv_strides, batch, head, columns, part0, column0)
        mixed0 = _dot(h, v0, _dot(p, dv0, mixed0 * fade[:, None]))
        if REST:
            v1 = _load(v, v_strides, batch, head, columns, part1, column1)
            dv1 = _load(dv, dv_strides, batch, head, columns, part1, column1)
            mixed1 = _dot(h, v1, _dot(p, dv1, mixed1 * fade[:, None]))
    o0 = _load(o, o_strides, batch, head, rows, part0, row0)
    do0 = (mixed0 - moved[:, None] * o0) / total[:, None]
    tl.store(_places(out, out_strides, batch, head, rows, part0), do0, mask=row0)
    if REST:
        o1 = _load(o, o_strides, batch, head, rows, part1, row1)
        do1 = (mixed1 - moved[:, None] * o1) / total[:, None]
        tl.store(_places(out, out_strides, batch, head, rows, part1), do1, mask=row1)
