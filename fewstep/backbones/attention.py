"""Softmax attention whose tangent never holds all scores.

The value goes through torch's fused kernels, which keep no scores for the backward. The tangent needs
softmax(q k^T) itself; it has no graph, so it is computed in slices of a bounded size and forgotten, and
memory grows with the number of tokens, not with its square.

A kernel that sweeps value and tangent together (PyPI's jvp-flash-attention, for Triton) would write no
scores at all. It is not used: nobody has compared its derivatives and its speed with this on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .dual import Carried, carry, parts

SCORES = 1 << 18
"""Most scores of one slice on a CPU, whose caches hold them."""
MANY = 1 << 24
"""The same on other devices, where a kernel over fewer takes less time than its start, and in compiled
code, where every slice makes the code longer."""


def attend(q: Carried, k: Carried, v: Carried) -> Carried:
    """Softmax attention of (B, heads, N, head_dim), by the kernel in force for the value.

    With P = softmax(S), S = q k^T / sqrt(head_dim) and H = P * dS the tangent is P dv + H v - rowsum(H) o.
    """
    (q, dq), (k, dk), (v, dv) = parts(q), parts(k), parts(v)
    q, k = q.to(v.dtype), k.to(v.dtype)
    o = F.scaled_dot_product_attention(q, k, v)

    def rule(dv: Tensor) -> Tensor:
        scale = q.shape[3] ** -0.5
        queries = [part.flatten(0, 1) for part in (q * scale, (dq * scale).to(v.dtype), o)]
        others = [part.flatten(0, 1) for part in (k, dk.to(v.dtype), v, dv)]
        most = SCORES if q.device.type == "cpu" and not torch.compiler.is_compiling() else MANY
        pairs, tokens = queries[0].shape[:2]
        heads, rows = max(1, most // tokens**2), max(1, min(tokens, most // tokens))
        found = torch.empty_like(queries[2])
        for head in range(0, pairs, heads):
            keys = [part[head : head + heads] for part in others]
            for row in range(0, tokens, rows):
                part = slice(head, head + heads), slice(row, row + rows)
                found[part] = _tangent(*(each[part] for each in queries), *keys)
        return found.view(o.shape)

    return carry(o, dv, rule)


def _tangent(q: Tensor, dq: Tensor, o: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor) -> Tensor:
    """The rule of `attend` on some rows (heads, n, head_dim) of q, dq and o; q and dq carry the scale."""
    P = torch.bmm(q, k.mT).softmax(-1)
    H = torch.baddbmm(torch.bmm(dq, k.mT), q, dk.mT).mul_(P)
    return torch.baddbmm(torch.bmm(P.to(v.dtype), dv), H, v).addcmul_(H.sum(-1, keepdim=True), o, value=-1)
