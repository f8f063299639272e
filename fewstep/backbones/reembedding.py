"""A smooth time embedding for a trained SD3: fitted to its own embedding, a function of one number.

SD3 embeds 1000 (1 - t) by sinusoids of up to 1000 rad per unit of t. What the layers after them make of it
is a smooth curve over t with noise on it, and the derivative with respect to t, which consistency training
needs, is that of the noise. The new embedder has slower sinusoids and follows the curve; all other weights
stay. No paper that distils SD3 by consistency says what it does about this: inferred.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor

from ..common.cli import first_few
from ..common.files import sha256
from ..config import digest
from ..config.backbones import SD3_TIMESTEPS
from ..config.methods import Reembed
from ..config.specs import ReembedSpec
from ..core.dual import make_dual, tangent_of
from ..core.rng import generator
from .model_file import load_model, save_model

EMBEDDER = "transformer.time_text_embed.timestep_embedder."
"""Start of the names of an embedder's tensors in a model file."""
POINTS = 4001
"""Times at which curves are compared, evenly over [0, 1]: 16 within the shortest of SD3's own waves."""
BATCH = 512
"""Of these, in a step of the fit."""
TESTED = (0.1, 0.3, 0.5, 0.7, 0.9)
STEP = 0.01
"""Half of the difference that a tangent is compared with."""
WINDOW = 201
"""Points of a moving average, 0.05 of [0, 1]: it takes 4 % of a wave of 20 rad, and most of faster ones."""
KEPT = ("status", "latents", "text", "loss", "code", "source", "sampler")
"""What the card of a network says of it whatever its time embedding."""


def reembed_model(spec: ReembedSpec, model: Path, out: Path) -> None:
    """Write the network of a model file with a smooth time embedding; its card says how well it fits.

    Raises:
        ValueError: a damaged file, one of another backbone (time_scale apart), or a fit that is too far off.
    """
    tensors, card = load_model(model)
    old_scale = _check_backbone(card["backbone"], spec, model)
    old = read_embedder(tensors)
    new = fit_embedder(old, old_scale, spec.backbone.time_scale, spec.reembed)
    fit = self_test(new, spec.backbone.time_scale, embedded_times(old, old_scale, even_times()))
    limits = {"residual": spec.reembed.limit, "tangent": spec.reembed.tangent_limit}
    keys = {"residual": "reembed.limit", "tangent": "reembed.tangent_limit"}
    for name, limit in limits.items():
        if not fit[name] <= limit:
            raise ValueError(
                f"{model}: {keys[name]}: the new time embedding has a relative {name} error of "
                f"{fit[name]:.3g}, above {limit:g}; give more reembed.steps or another backbone.time_scale"
            )
    made = {**tensors, **{f"{EMBEDDER}{name}": value for name, value in new.state_dict().items()}}
    dtype = tensors[f"{EMBEDDER}linear_1.weight"].dtype
    made = {name: value.to(dtype) if name.startswith(EMBEDDER) else value for name, value in made.items()}
    kept = {key: card[key] for key in KEPT if key in card}
    about = {
        "method": spec.method,
        "spec": digest(spec),
        "origin": {"sha256": sha256(model)},
        "reembed": fit,
    }
    save_model(out, made, spec.backbone, kept | about)
    print(
        f"relative residual {fit['residual']:.3g} ({fit['pointwise']:.3g} with the old one's noise), "
        f"tangent against difference {fit['tangent']:.3g}"
    )


def _check_backbone(found: Mapping[str, Any], spec: ReembedSpec, model: Path) -> float:
    """The time_scale of the old network, which must be the new one otherwise."""
    asked = spec.backbone.model_dump(mode="json")
    others = [
        f"{key} {found.get(key)!r} there, {asked[key]!r} in the spec"
        for key in asked
        if key != "time_scale" and found.get(key) != asked[key]
    ]
    if others:
        raise ValueError(f"{model}: backbone differs in more than time_scale: {first_few(others)}")
    return float(found["time_scale"])


def read_embedder(tensors: Mapping[str, Tensor]) -> TimestepEmbedding:
    """The time embedder of a model file's tensors, in float32."""
    state = {
        name.removeprefix(EMBEDDER): value.float()
        for name, value in tensors.items()
        if name.startswith(EMBEDDER)
    }
    width, sinusoids = state["linear_1.weight"].shape
    embedder = TimestepEmbedding(sinusoids, width)
    embedder.load_state_dict(state)
    return embedder.requires_grad_(False)


def even_times() -> Tensor:
    """The times (POINTS,) from 0 to 1."""
    return torch.linspace(0, 1, POINTS)


def sinusoids(number: int, time_scale: float, t: Tensor) -> Tensor:
    """SD3's sinusoids (N, number) of times t (N,), the fastest of ``time_scale`` rad per unit of t."""
    waves = Timesteps(number, flip_sin_to_cos=True, downscale_freq_shift=0, scale=time_scale / SD3_TIMESTEPS)
    result: Tensor = waves(SD3_TIMESTEPS * (1 - t))
    return result


def embedded_times(embedder: TimestepEmbedding, time_scale: float, t: Tensor) -> Tensor:
    """The embedding (N, width) of times t (N,)."""
    result: Tensor = embedder(sinusoids(embedder.linear_1.in_features, time_scale, t))
    return result


def fit_embedder(
    old: TimestepEmbedding, old_scale: float, new_scale: float, options: Reembed
) -> TimestepEmbedding:
    """An embedder on sinusoids of up to ``new_scale`` rad that follows the curve of ``old`` over [0, 1].

    It starts with the old weights. Adam, with a learning rate that falls as a cosine, sees ``BATCH`` random
    times in each of ``options.steps`` steps. Everything is drawn from ``options.seed``.
    """
    t = even_times()
    curve = embedded_times(old, old_scale, t)
    waves = sinusoids(old.linear_1.in_features, new_scale, t)
    new = TimestepEmbedding(old.linear_1.in_features, old.linear_1.out_features)
    new.load_state_dict(old.state_dict())
    draws = generator(options.seed, "reembed")
    optimizer = torch.optim.Adam(new.parameters(), options.lr)
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = options.lr * (1 + math.cos(math.pi * step / options.steps)) / 2
        chosen = torch.randint(POINTS, (BATCH,), generator=draws)
        loss = (new(waves[chosen]) - curve[chosen]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return new.requires_grad_(False)


def self_test(new: TimestepEmbedding, new_scale: float, curve: Tensor) -> dict[str, Any]:
    """How well an embedder follows a curve (POINTS, width) over [0, 1], and how smooth it is.

    Returns:
        ``residual``: root mean square of the difference of moving averages, relative to the curve's: the
        noise of the old embedding is not to be followed; ``pointwise``: the same without averages, where that
        noise counts; ``tangents``: at five times, the relative gap between the derivative with respect to t
        and a difference over 2 STEP; ``tangent``: the largest.
    """
    with torch.no_grad():
        off = embedded_times(new, new_scale, even_times()) - curve
        averages = F.avg_pool1d(off.T, WINDOW, stride=1)
        t = torch.tensor(TESTED)
        ahead, behind = (embedded_times(new, new_scale, t + step) for step in (STEP, -STEP))
        difference = (ahead - behind) / (2 * STEP)
        tangent = tangent_of(embedded_times(new, new_scale, make_dual(t, torch.ones_like(t))))
        gaps = (tangent - difference).norm(dim=1) / difference.norm(dim=1)
    tangents = {f"{time:g}": float(f"{gap:.4g}") for time, gap in zip(TESTED, gaps.tolist(), strict=True)}
    return {
        "residual": float(f"{relative(averages, curve):.4g}"),
        "pointwise": float(f"{relative(off, curve):.4g}"),
        "tangent": max(tangents.values()),
        "tangents": tangents,
    }


def relative(error: Tensor, curve: Tensor) -> float:
    """Root mean square of ``error`` over that of ``curve``."""
    return float((error.square().mean() / curve.square().mean()).sqrt())
