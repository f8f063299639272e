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
        most = SCORES if q.device.type == "cpu" and not torch.compiler.is_compiling() else MANY
        tokens, found = q.shape[2], torch.empty_like(o)
        heads, rows = max(1, most // tokens**2), max(1, min(tokens, most // tokens))
        whole = (found, q, dq.to(v.dtype), o, k, dk.to(v.dtype), v, dv)
        # Slices of one sample are views, those over several samples want a copy.
        single = heads <= q.shape[1]
        for one in zip(*whole) if single else [[part.flatten(0, 1) for part in whole]]:
            for head in range(0, len(one[0]), heads):
                out, *queries = (part[head : head + heads] for part in one[:4])
                keys = [part[head : head + heads] for part in one[4:]]
                for row in range(0, tokens, rows):
                    cut = slice(None), slice(row, row + rows)
                    out[cut] = _tangent(*(part[cut] for part in queries), *keys)
            if not single:
                found = one[0].view(o.shape)
        return found

    return carry(o, dv, rule)


def _tangent(q: Tensor, dq: Tensor, o: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor) -> Tensor:
    """The rule of `attend` on some rows (heads, n, head_dim) of q, dq and o."""
    scale = q.shape[2] ** -0.5
    P = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=scale).softmax(-1)
    H = torch.baddbmm(torch.bmm(dq, k.mT), q, dk.mT, beta=scale, alpha=scale).mul_(P)
    return torch.baddbmm(torch.bmm(P.to(v.dtype), dv), H, v).addcmul_(H.sum(-1, keepdim=True), o, value=-1)
