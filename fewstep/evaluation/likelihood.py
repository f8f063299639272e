"""Likelihoods of real images under a flow: they are carried to the noise, with the divergence's integral.

log p(x1) = log N(x0; 0, 1) - int_0^1 div v(x_t, t) dt along dx/dt = v from x1 at t = 1 to x0 at t = 0. Two
samplers (evaluation/samplers.py) are taken backwards on their own grid, 1 = t_0 > ... > t_n = 0:

* ``jump``: x += (s - t) F(x, t, s), log p += (s - t) scale D(x, t, s), D the network's output ``scalar``;
* ``euler``: x += (s - t) v(x, t), log p += (s - t) div v(x, t), the divergence by tangents
  (core/divergence.py).

Bits per dimension (as in the release of F2D2, arXiv 2512.02636): a byte b becomes y = (b + u) / 256 with
uniform u; the network sees z = 2 y - 1, and

    bpd = - (log p(z) + D log 2 - D log 256) / (D log 2),   D = C H W.

Images, noise u and probes belong to the image's index: the result does not depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..backbones.model_file import check_tokenizer, load_network
from ..common.files import sha256
from ..config import ConfigError, digest
from ..config.backbones import FlowNetwork
from ..config.settings import Sampler
from ..config.specs import LikelihoodScoreSpec
from ..core.divergence import divergence
from ..core.jvp import value_and_tangent
from ..core.rng import generator
from ..data.shards import LatentShards
from .distributed_map import distributed_map, is_main, join_processes
from .metrics_file import write_cell
from .samplers import time_grid

CHUNK = 256
"""Images at a time."""

Rates = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, t, s) -> average velocity (B, ...) and average divergence (B,) from t to s, both (B,)."""


def log_likelihood(sampler: Sampler, rates: Rates, x1: Tensor, steps: int) -> Tensor:
    """log p(x1) in nats, (B,), float64, for a standard normal at t = 0.

    Args:
        rates: called at float32 or float64 points, as x1 is.
    """
    times = (sampler.times and [*sampler.times, 1.0]) or time_grid(steps, sampler.shift).tolist()
    x, total = x1.double(), torch.zeros(len(x1), dtype=torch.float64, device=x1.device)
    for now, after in pairwise(reversed(times)):
        t, s = (torch.full((len(x1),), time, dtype=x1.dtype, device=x1.device) for time in (now, after))
        F, D = rates(x.to(x1.dtype), t, s)
        x, total = x + (after - now) * F.double(), total + (after - now) * D.double()
    prior = -0.5 * (x.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    return prior + total


def bits_per_dimension(log_p: Tensor, dimensions: int) -> Tensor:
    """- log2 p of images in 8 bits, for each dimension, from log p (B,) of their values in [-1, 1]."""
    return -(log_p / dimensions + math.log(2) - math.log(256)) / math.log(2)


def average_rates(net: nn.Module, y: Tensor, scale: float) -> Rates:
    """Of a network with a scalar."""

    def rates(x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            pair: tuple[Tensor, Tensor] = net(x, t, s, y)
        return pair[0], scale * pair[1]

    return rates


def velocity_rates(net: nn.Module, y: Tensor, probe: Callable[[Tensor, Tensor], Tensor] | None) -> Rates:
    """Of any network, along its velocity F(x, t, t).

    Args:
        probe: random signs in the shape of x, by x and t; None: the divergence is exact.
    """

    def rates(x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        directions = None if probe is None else probe(x, t)
        v, found = divergence(value_and_tangent, net, x, t, y, directions)
        return v, found

    return rates


def score_likelihoods(spec: LikelihoodScoreSpec, model: Path, manifest: Path, out: Path) -> None:
    """Write bits per dimension of real images, their mean, as JSON.

    Args:
        manifest: of the real images, whose latents are pixels between -1 and 1.

    Raises:
        ConfigError: a sampler that has no way back, a network without the output ``scalar``, or latents that
            are not pixels or too few.
        ValueError: model and latents do not belong together.
    """
    protocol = spec.protocol
    check(spec, model)
    device = join_processes()
    net, card = load_network(model, spec.backbone)
    check_tokenizer(card, spec.latents.tokenizer, model)
    net = net.to(device)
    shards = LatentShards(manifest)
    shards.check(spec.latents)
    if protocol.images > len(shards):
        raise ConfigError(f"{manifest}: {len(shards)} images, but the protocol wants {protocol.images}")

    def read(chunk: range) -> tuple[Tensor, Tensor, range]:
        at = torch.arange(chunk.start, chunk.stop)
        pixels = shards.normalise(shards.read(at, torch.zeros_like(at), None))
        noise = [
            torch.rand(pixels.shape[1:], generator=generator(protocol.seed, "dequantise", i)) for i in chunk
        ]
        bytes_ = ((pixels + 1) * 127.5).round()
        return 2 * (bytes_ + torch.stack(noise)) / 256 - 1, shards.labels[at], chunk

    def bits(given: tuple[Tensor, Tensor, range]) -> dict[str, Tensor]:
        x1, y, chunk = given
        x1, y = x1.to(device), y.to(device)
        with torch.autocast(device.type, torch.bfloat16, protocol.network_dtype == "bfloat16"):
            if spec.sampler.kind == "jump":
                assert spec.scale is not None
                rates = average_rates(net, y, spec.scale)
            else:
                exact = protocol.trace == "exact"
                rates = velocity_rates(net, y, None if exact else _signs(protocol.seed, chunk))
            log_p = log_likelihood(spec.sampler, rates, x1, spec.steps)
        return {"bpd": bits_per_dimension(log_p, x1[0].numel()).cpu()}

    count = protocol.images
    chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    values = torch.cat([found["bpd"] for found in distributed_map(read, bits, chunks)] or [torch.empty(0)])
    if is_main():
        write_cell(
            out,
            spec,
            card,
            {"bpd": float(values.mean())},
            count,
            spec.steps,
            {"spec": digest(spec), "sampler": spec.sampler.model_dump(mode="json"), "guidance": None},
            dimensions=shards.shape[0] * shards.shape[1] * shards.shape[2],
            real_images={"latents": spec.latents.name, "sha256": sha256(manifest)},
        )


def check(spec: LikelihoodScoreSpec, model: Path) -> None:
    """Refuse what has no likelihood.

    Raises:
        ConfigError: as for :func:`score_likelihoods`.
    """
    sampler, backbone = spec.sampler, spec.backbone
    where = f"{model}: bpd by sampler kind {sampler.kind}"
    if not isinstance(backbone, FlowNetwork):
        raise ConfigError(f"{where}: backbone.kind: {backbone.kind} is no flow")
    if sampler.kind not in ("jump", "euler") or sampler.gamma:
        raise ConfigError(f"{where}: it has no way back to the noise; use euler, or jump without gamma")
    if sampler.guidance != "none":
        raise ConfigError(f"{where}: sampler.guidance: a guided field has no density of the data; use none")
    if sampler.kind == "jump" and (not backbone.scalar or spec.scale is None):
        raise ConfigError(
            f"{where}: backbone.scalar is false, and jumps need its divergence; train with loss f2d2, or use "
            "euler"
        )
    tokenizer = spec.latents.tokenizer
    if (tokenizer.kind, tokenizer.statistics, tokenizer.multiplier) != ("pixels", "none", 1):
        raise ConfigError(
            f"{where}: latents {spec.latents.name} are no pixels between -1 and 1; likelihoods are of "
            "images in 8 bits"
        )


def _signs(seed: int, chunk: range) -> Callable[[Tensor, Tensor], Tensor]:
    """Random signs of images ``chunk`` for each time, in the shape of x."""

    def probe(x: Tensor, t: Tensor) -> Tensor:
        step = float(t[0])
        drawn = [
            torch.randint(2, x.shape[1:], generator=generator(seed, "probe", repr(step), image))
            for image in chunk
        ]
        return (2 * torch.stack(drawn) - 1).to(x)

    return probe
