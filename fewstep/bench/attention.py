"""Attention by every rule of its tangent: value with graph, tangent without, backward.

    python -m fewstep.bench attention [--large] [--batch 16] [--rules sliced kernel] [--out x.csv]

``value`` has no tangent: the least that the others can take. ``at once`` is the rule of core/dual.py on all
scores, ``compiled`` the same by inductor, ``sliced`` the rule as it is used. ``kernel`` is the Triton kernel
of core/attention_kernel.py at any size, which a training uses with --attention-kernel; on a CPU it wants
TRITON_INTERPRET=1, and its time says nothing. ``jvp-flash-attention`` is the package of that name, where it
is installed. Errors are those of the first sample relative to float64. A case that fails says why in its row.

With ``--large``: 256 and 1,024 tokens in 16 heads of 72 channels (LightningDiT-XL), and 333 tokens of text
with 1,024 of an image in 24 heads of 64 (Stable Diffusion 3), in bfloat16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ..core import dual
from .meters import DEVICE, Case, peak_bytes

SMALL = {"64": (64, 2, 24), "joint 21+64": (85, 2, 16)}
LARGE = {"256": (256, 16, 72), "1024": (1024, 16, 72), "joint 333+1024": (1357, 24, 64)}
"""Tokens, heads, and channels of a head."""
CALLS = 10 if DEVICE.type == "cuda" else 1
"""In a row between two looks at the clock, for which a GPU must be waited for."""
NUMBERS = ("ms", "median ms", "MiB", "value error", "tangent error")
Rule = Callable[..., tuple[Tensor, Tensor | None]]
"""Of q, dq, k, dk, v and dv, (B, heads, tokens, channels) each: attention and its tangent."""


def value(q: Tensor, _dq: Tensor, k: Tensor, _dk: Tensor, v: Tensor, _dv: Tensor) -> tuple[Tensor, None]:
    return F.scaled_dot_product_attention(q, k, v), None


def sliced(q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    dual.use_attention_kernel(False)
    found = F.scaled_dot_product_attention(dual.Dual(q, dq), dual.Dual(k, dk), dual.Dual(v, dv))
    return found.value, found.tangent


def at_once(q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    o = F.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        heads = (z.flatten(0, 1) for z in (q, dq, k, dk, v, dv))
        return o, dual.attention_slice(None, q.shape[-1] ** -0.5, o, *heads)


@cache
def _compiled() -> Rule:
    compiled: Rule = torch.compile(at_once, dynamic=False)
    return compiled


def kernel(q: Tensor, dq: Tensor, k: Tensor, dk: Tensor, v: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    from ..core.attention_kernel import INTERPRETED, attention_tangent

    if not (q.is_cuda or INTERPRETED.value):
        raise ValueError("needs a GPU, or TRITON_INTERPRET=1")
    o = F.scaled_dot_product_attention(q, k, v)
    with torch.no_grad():
        return o, attention_tangent(q, dq, k, dk, v, dv, o, q.shape[-1] ** -0.5)


def jvp_flash(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Value and tangent by one kernel, whose heads have a power of two of channels."""
    from jvp_flash_attention.jvp_attention import JVPAttn

    channels = tensors[0].shape[-1]
    more = (1 << (channels - 1).bit_length()) - channels
    q, dq, k, dk, v, dv = (F.pad(z, (0, more)) for z in tensors)
    with forward_ad.dual_level():
        pairs = (forward_ad.make_dual(*pair) for pair in ((q, dq), (k, dk), (v, dv)))
        found = forward_ad.unpack_dual(JVPAttn.fwd_dual(*pairs, sm_scale=channels**-0.5))
    return found.primal[..., :channels], found.tangent[..., :channels].detach()


RULES: dict[str, Rule] = {
    "value": value,
    "at once": at_once,
    "compiled": lambda *tensors: _compiled()(*tensors),
    "sliced": sliced,
    "kernel": kernel,
    "jvp-flash-attention": jvp_flash,
}
UNUSUAL = {
    "compiled": DEVICE.type == "cpu",  # where compilation takes longer than all the rest
    "jvp-flash-attention": find_spec("jvp_flash_attention") is None,
}
"""Whether a rule is measured only where it is asked for."""


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--batch", type=int, help="samples at once (2, or 16 with --large)")
    usual = [name for name in RULES if not UNUSUAL.get(name)]
    options.add_argument("--rules", nargs="+", choices=RULES, default=usual)


@dataclass
class AttentionCase(Case):
    """One rule at one size, with its errors."""

    errors: Callable[[], list[float]]
    """Of the value and, if there is one, of the tangent."""
    found: tuple[int, list[float]] = (0, [])
    """Bytes and errors."""

    def warm_up(self) -> None:
        """Compile what is to be compiled, and measure memory and errors."""
        self.call()
        self.found = peak_bytes(self.call), self.errors()

    def columns(self) -> Sequence[str]:
        return NUMBERS

    def numbers(self, first: Case) -> dict[str, str]:
        size, errors = self.found
        values = [
            f"{1e3 * min(self.seconds) / CALLS:.4g}",
            f"{1e3 * median(self.seconds) / CALLS:.4g}",
            f"{size / 2**20:.4g}",
            *(f"{error:.2g}" for error in errors),
        ]
        return dict.fromkeys(NUMBERS, "") | dict(zip(NUMBERS, values, strict=False))


def cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Every rule at every size."""
    dtype = torch.bfloat16 if given.large else torch.float32
    batch = given.batch or (16 if given.large else 2)
    found: list[Case] = []
    for name, (tokens, heads, channels) in (LARGE if given.large else SMALL).items():
        draws = torch.Generator().manual_seed(0)
        shape = (batch, heads, tokens, channels)
        tensors = [torch.randn(shape, generator=draws).to(DEVICE, dtype) for _ in range(7)]
        for rule in given.rules:
            words = {"tokens": name, "batch": str(batch), "heads": str(heads), "channels": str(channels)}
            words |= {"dtype": str(dtype).removeprefix("torch."), "rule": rule}
            measured = RULES[rule], *tensors
            found.append(AttentionCase(words, partial(_call, *measured), CALLS, partial(_errors, *measured)))
    return found


def _call(rule: Rule, gradient: Tensor, *tensors: Tensor) -> None:
    for _ in range(CALLS):
        leaves = [z.detach().requires_grad_(not number % 2) for number, z in enumerate(tensors)]
        o, _tangent = rule(*leaves)
        o.backward(gradient)


def _errors(rule: Rule, _gradient: Tensor, *tensors: Tensor) -> list[float]:
    """Of the first sample, relative to the norm in float64."""
    found = rule(*tensors)
    exact = at_once(*(z[:1].double() for z in tensors))
    return [
        float((ours[:1] - theirs).norm() / theirs.norm())
        for ours, theirs in zip(found, exact, strict=True)
        if ours is not None
    ]
