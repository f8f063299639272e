"""Decomposable flow matching (arXiv 2506.19839, section 3): flow matching of each scale of a pyramid.

    x_s = t_s x1_s + (1 - t_s) x0_s,   v_s = x1_s - x0_s,   L = sum over s <= Q of mean (G_s - v_s)^2

where x1_s is scale s of the data's Laplacian pyramid, x0_s noise of its own, and Q the last scale that is
there. Q is drawn with the shares ``stages``; t_Q follows ``times`` and the scales before it ``earlier``. The
scales after Q have t = 0 and are zero at the network's entrance.

Mapping: the paper's time is ours; its release has noise at t = 1, and so a mean of -2 for ``earlier``.

Deviations from the paper:

* It prints squared norms; as in its release, each scale counts by its mean, whatever its number of pixels.
* Its release draws one Q for all rows that a process sees; here every row has its own, in the exact shares.
* It prints the mean 1.5 for ``earlier``, its release has 2: the printed one is the default.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.losses import mean_square
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import interpolate
from ...core.path_sample import labels
from ...core.precision import upcast
from ...core.pyramid import decompose, pack, unpack
from ...core.times import sample_times
from .params import DFMParams


class DFM(Method):
    params: DFMParams

    def times(self, ctx: Context) -> tuple[Tensor, Tensor]:
        """Time of every scale, and whether it is there: t (B, S), float32, and bool (B, S)."""
        p = self.params
        chance = ctx.rng.strata("stage")
        last, ends = torch.zeros_like(chance, dtype=torch.int64), 0.0
        for share in p.stages[:-1]:
            ends += share
            last = last + (chance >= ends)
        final = sample_times(p.times, ctx.rng, "t")
        columns, there = [], []
        for scale in range(len(p.stages)):
            earlier = (
                sample_times(p.earlier, ctx.rng, f"t of scale {scale}")
                if scale + 1 < len(p.stages)
                else final
            )
            columns.append(torch.where(last == scale, final, earlier).masked_fill(last < scale, 0))
            there.append(last >= scale)
        return torch.stack(columns, 1), torch.stack(there, 1)

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        t, there = self.times(ctx)
        t = t.to(batch.x1.dtype)
        data = decompose(batch.x1, len(self.params.stages))
        # The batch's own noise is that of the finest scale.
        noise = [ctx.rng.normal_like(f"noise of scale {scale}", part) for scale, part in enumerate(data[:-1])]
        noise.append(batch.x0)
        points = [
            interpolate(x0, x1, t[:, scale]) * there[:, scale, None, None, None]
            for scale, (x0, x1) in enumerate(zip(noise, data, strict=True))
        ]
        found = upcast(net(pack(points), t, t, labels(batch, ctx)))
        parts = unpack(found, [(part.shape[2], part.shape[3]) for part in data])
        total, logs = torch.zeros((), dtype=found.dtype, device=found.device), {}
        for scale, (G, x0, x1) in enumerate(zip(parts, noise, data, strict=True)):
            term = (mean_square(G, x1 - x0) * there[:, scale]).mean()
            total = total + term
            logs[f"loss_scale{scale}"] = term.detach()
        return LossOutput(total, logs)
