"""DiT (arXiv 2212.09748): a network that predicts the noise of a discrete diffusion, as a velocity field.

Mapping: at step k of 0..999 the diffusion has z = a y + b e with data y, noise e, a^2 + b^2 = 1 and
a^2 = (1 - beta_0) ... (1 - beta_k), beta rising evenly from 1e-4 to 0.02 (arXiv 2006.11239). A point
x_t = t x1 + (1 - t) x0 divided by r = sqrt(t^2 + (1 - t)^2) is one with a = t / r and b = (1 - t) / r. The
network's output there is E[x0 | x_t], hence the velocity E[x1 - x0 | x_t] = (x_t - E[x0 | x_t]) / t.

Deviations from the paper:

* Between two trained steps log(a / b) is interpolated in k; the network's embedding takes any number.
* The steps reach from t = 0.0063 (k = 999) to t = 0.99 (k = 0): beyond them the field is that at the end.
* The learned variance belongs to the discrete sampler and is dropped when weights are adopted.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..core.path import append_dims
from .lightningdit import LightningDiT

STEPS = 1000


@cache
def levels() -> Tensor:
    """log(a / b) of the steps, rising: from the last to the first, float64."""
    beta = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    kept = torch.log1p(-beta).cumsum(0)  # log a^2
    return (kept - torch.log(-torch.expm1(kept))).flip(0) / 2


def step(t: Tensor) -> tuple[Tensor, Tensor]:
    """The diffusion's step k for times t (B,), and the times as far as there are steps; both float64."""
    first, last = torch.sigmoid(levels()[[0, -1]]).tolist()  # t / (1 - t) = a / b
    t = t.double().clamp(first, last)
    rising, level = levels().to(t.device), torch.logit(t)
    above = torch.searchsorted(rising, level).clamp(1, STEPS - 1)
    low, high = rising[above - 1], rising[above]
    return STEPS - above - (level - low) / (high - low), t


class NoiseDiT(LightningDiT):
    """The same layers and names; called alike, for the velocity at s = t alone."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None, y: Tensor) -> Tensor:
        """Velocity (B, C, H, W) at points x of the straight path and times t (B,); s is ignored."""
        k, t = step(t)
        r = torch.hypot(t, 1 - t)
        e = super().forward(x / append_dims(r, x).to(x.dtype), k.to(x.dtype), None, y)
        assert not isinstance(e, tuple)
        return (x - e) / append_dims(t, x).to(x.dtype)
