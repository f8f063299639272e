"""Noise to bytes, and the share of the network's own passes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from ..config.settings import Sampler
from ..core.guidance import guided_field
from ..core.rng import generator
from ..core.sampling import sample
from ..images import to_uint8
from .cases import DEVICE, Case, Clock
from .models import autoencoder, network, vavae_of


def cases(given: argparse.Namespace, _folder: Path) -> list[Case]:
    """Noise to bytes, and the share of the network's own passes."""
    net, spec = network(given.large)
    net.eval().requires_grad_(False)
    coder = vavae_of(True) if given.large else autoencoder()
    labels = torch.arange(given.batch, device=DEVICE) % spec.classes

    def case(steps: int) -> Case:
        clock = Clock()

        def timed(*inputs: Tensor) -> Tensor:
            with clock():
                return net(*inputs)

        @torch.no_grad()
        def call() -> None:
            draws = [torch.randn(spec.shape, generator=generator(0, "start", k)) for k in range(given.batch)]
            field = guided_field(timed, None, spec.classes, labels)
            sampler = Sampler(kind="euler")
            x = sample(sampler, field, torch.stack(draws).to(DEVICE), steps, lambda _: torch.stack(draws))
            to_uint8(coder.decode(x), "round").cpu()

        return Case(f"euler, {steps} steps", call, given.batch, "images", clock, "in the network")

    return [case(1), case(8)]
