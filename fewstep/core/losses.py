"""What the objectives share: distances, adaptive weights, the consistency residual.

All per-sample numbers have shape (B,); residuals and targets carry no gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ..config.objectives import ConsistencyTerms
from .method import Context
from .path import append_dims
from .path_sample import PathSample
from .precision import upcast


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Mean over C, H, W of (a - b)^2, shape (B,)."""
    return (upcast(a) - upcast(b)).square().flatten(1).mean(1)


def mean_absolute(a: Tensor, b: Tensor) -> Tensor:
    """Mean over C, H, W of |a - b|, shape (B,)."""
    return (upcast(a) - upcast(b)).abs().flatten(1).mean(1)


def adaptive(e: Tensor, p: float, c: float) -> Tensor:
    """e / sg(e + c)^p (MeanFlow, arXiv 2505.13447, section 4.3).

    p = 0 leaves e; p = 1/2 has the gradient of a pseudo-Huber loss.
    """
    return e / (e + c).pow(p).detach()


def pseudo_huber(e: Tensor, c: float | None) -> Tensor:
    """sqrt(e + c^2) - c of mean squares e (B,), as UCGM's release has it; e itself where c is None."""
    return e if c is None else (e + c * c).sqrt() - c


def velocity_loss(F: Tensor, v: Tensor, cosine: bool, huber: float | None = None) -> Tensor:
    """Flow matching, shape (B,): mean square, plus the mean over H, W of 1 - cos(F, v) over channels.

    DE-CM, arXiv 2602.10764, Eq. 17. With ``huber`` the mean square under its pseudo-Huber loss.
    """
    loss = pseudo_huber(mean_square(F, v), huber)
    if cosine:
        loss = loss + (1 - cosine_similarity(upcast(F), upcast(v), dim=1)).flatten(1).mean(1)
    return loss


def consistency_residual(F: Tensor, v: Tensor, dF_scaled: Tensor) -> Tensor:
    """g = sg(F) - v - (s - t) dF, zero at the exact flow map; ``dF_scaled`` holds (s - t) dF.

    DE-CM, arXiv 2602.10764, below Eq. 7, for any end time s.
    """
    return upcast(F.detach()) - upcast(v) - upcast(dF_scaled)


def rms(g: Tensor) -> Tensor:
    """Root of the mean square over C, H, W, shape (B,)."""
    return g.square().flatten(1).mean(1).sqrt()


def bounded(x: Tensor, bound: float | None) -> Tensor:
    """x with every element between -bound and bound; None leaves it."""
    return x if bound is None else x.clamp(-bound, bound)


def follow_residual(F: Tensor, g: Tensor, weight: Tensor, terms: ConsistencyTerms) -> Tensor:
    """Adaptive distance of F to its target sg(F) - weight * clamp(g), shape (B,)."""
    target = upcast(F.detach()) - append_dims(weight, g) * bounded(g, terms.clamp)
    return adaptive(mean_square(F, target), terms.norm_power, terms.norm_constant)


def consistency_loss(
    net: nn.Module, at: PathSample, ctx: Context, terms: ConsistencyTerms
) -> tuple[Tensor, dict[str, Tensor]]:
    """Continuous-time consistency towards s = 1, shape (B,), and what to log of it.

    g = sg(F) - v - (1 - t) dF at (x_t, t, 1), with dF along (v, 1, 0); the target is
    sg(F) - alpha(t) g, alpha = 1 - t^p, and the loss is weighted by beta = cos(pi t / 2) if asked for
    (DE-CM Eqs. 7, 10, 11; alpha, beta and the clamp as in FACM's implementation).
    """
    gap = 1 - at.t
    ends = torch.ones_like(at.t)
    directions = (append_dims(gap, at.x) * at.v, gap, torch.zeros_like(gap))
    F, dF_scaled = ctx.jvp(net, (at.x, at.t, ends), directions, at.y)
    g = consistency_residual(F, at.v, dF_scaled)
    loss = follow_residual(F, g, 1 - at.t.pow(terms.alpha_power), terms)
    if terms.beta:
        loss = loss * torch.cos(math.pi / 2 * at.t)
    return loss, {"loss_cm": loss.mean().detach(), "residual_cm": rms(g).mean()}
