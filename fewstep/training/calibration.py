"""The norm that a teacher's guidance is held to, measured on the latents before training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config.backbones import FlowNetwork
from ..config.specs import TrainSpec
from ..core.guidance import calibrate
from ..core.heads import Output
from ..core.path import interpolate
from ..core.rng import fold_in, generator
from ..data.loader import Loader
from ..data.shards import LatentShards


def calibrated(
    spec: TrainSpec,
    teacher: nn.Module | None,
    shards: LatentShards,
    device: torch.device,
    load: Callable[[Tensor], None] | None = None,
) -> float | None:
    """Norm of the teacher's guidance difference by the rule of ``spec.guidance.eta``.

    ``load`` is given the labels before the network, to bring what belongs to them.

    None where velocity normalisation does not ask for it: no teacher, no norm, or one given as a number.
    """
    guidance = spec.guidance
    if teacher is None or guidance is None or isinstance(guidance.eta, float) or guidance.normalise == "none":
        return None
    count = guidance.calibration
    loader = Loader(shards, fold_in(spec.seed, "calibration"), count)
    batch = loader.rows(0, slice(0, count), device)
    low, high = guidance.interval
    draws = torch.rand(count, generator=generator(spec.seed, "calibration", "t"))
    t = (low + (high - low) * draws).to(device)
    x = interpolate(batch.x0, batch.x1, t)
    assert isinstance(spec.backbone, FlowNetwork)

    def net(x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Output:
        if load is not None:
            load(y)
        output: Output = teacher(x, t, s, y)
        return output

    # Its batches have other sizes than a training step's: compiled blocks would be compiled for them too.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return calibrate(net, guidance, spec.backbone.null, x, t, batch.y)
