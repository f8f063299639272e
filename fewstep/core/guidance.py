"""Classifier-free guidance of a velocity field, for teaching and for sampling.

G = v_c + 1[lo <= t <= hi] (scale - 1) norm(v_c - v_u), where v_c sees the label and v_u the null
label (DE-CM, arXiv 2602.10764, Eq. 18 and Algorithm 1, line 6). ``norm`` is one of

* none: the difference as it is;
* rescale: shortened to length eta where it is longer (APG's rescaling);
* unit: of length eta everywhere (DE-CM as printed).

Deviations from the paper:

* DE-CM divides by the bare norm, 0 / 0 where both predictions agree: 1e-8 is added here.
* DE-CM names neither eta nor the axes of the norm: here the norm is per sample over all guided
  channels and pixels, and eta may be calibrated on the norms of the teacher's own differences: their
  mean (``unit`` then keeps the average strength) or their 90th percentile (``rescale`` then shortens
  outliers alone and nearly keeps it; at the mean it would weaken half of all samples).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..config.settings import Guidance
from .heads import Output, average_velocity
from .path import append_dims

TINY = 1e-8
Times = float | tuple[float, ...]
"""Time of all rows, or of each scale of a pyramid in them."""


class ClassifierFreeGuidance:
    """The guided field of a network; conditional and unconditional rows go through it in one batch.

    Args:
        net: called as ``net(x, t, s, y)``, with one output or two (core/heads.py).
        guidance: None leaves the conditional field.
        null: label of the unconditional class.
        eta: the calibrated norm, needed when ``guidance.eta`` is a rule and a norm is asked for.

    Raises:
        ValueError: eta is needed and missing.
    """

    def __init__(
        self, net: Callable[..., Output], guidance: Guidance | None, null: int, eta: float | None = None
    ):
        self.net = net
        self.guidance = guidance
        self.null = null
        if guidance is not None and isinstance(guidance.eta, float):
            eta = guidance.eta
        if guidance is not None and guidance.scale != 1 and guidance.normalise != "none" and eta is None:
            raise ValueError(
                f"guidance.normalise: {guidance.normalise} with eta: {guidance.eta} needs a calibrated norm: "
                "pass eta=calibrate(...), or give guidance.eta as a number"
            )
        self.eta = eta

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Guided velocity at s = t, (B, C, H, W), at least float32, without a graph."""
        return self.field(x, t, t, y)

    def field(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Guided average velocity from t to s, (B, C, H, W), at least float32, without a graph."""
        g = self.guidance
        with torch.no_grad():
            if g is None or g.scale == 1:
                return average_velocity(self.net, x, t, s, y)
            conditional, difference = differences(self.net, g, self.null, x, t, s, y)
            if g.normalise != "none":
                assert self.eta is not None
                factor = self.eta / (_norm(difference) + TINY)
                if g.normalise == "rescale":
                    factor = factor.clamp(max=1)
                difference = append_dims(factor, x) * difference
            difference = difference.where(append_dims(self.inside(t), x), 0)
            return conditional.add(difference, alpha=g.scale - 1)

    def inside(self, t: Tensor) -> Tensor:
        """Whether times (B,), or all of (B, S), are guided, (B,), bool."""
        if self.guidance is None or self.guidance.scale == 1:
            return torch.zeros_like(t, dtype=torch.bool)
        low, high = self.guidance.interval
        return ((t >= low) & (t <= high)).reshape(len(t), -1).all(1)


def guided_field(
    net: Callable[..., Output], guidance: Guidance | None, null: int, y: Tensor, eta: float | None = None
) -> Callable[[Tensor, Times, Times], Tensor]:
    """The field (x, t, s) -> F that a sampler follows, for labels ``y`` (B,), guided for every s.

    All samples have the same times, which the host knows: outside the interval there is no unconditional
    pass, and nothing waits for the device.
    """
    guided = ClassifierFreeGuidance(net, guidance, null, eta)
    plain = ClassifierFreeGuidance(net, None, null)
    low, high = np.array([0, 1] if guidance is None else guidance.interval, dtype=np.float32)

    def whole(t: Times, x: Tensor) -> Tensor:
        if isinstance(t, tuple):
            return torch.stack([whole(each, x) for each in t], 1)
        return torch.full((len(x),), t, dtype=torch.float32, device=x.device)

    def field(x: Tensor, t: Times, s: Times) -> Tensor:
        inside = (low <= np.float32(each) <= high for each in (t if isinstance(t, tuple) else (t,)))
        chosen = guided if all(inside) else plain
        return chosen.field(x, whole(t, x), whole(s, x), y)

    return field


def differences(
    net: Callable[..., Output], guidance: Guidance, null: int, x: Tensor, t: Tensor, s: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """v_c, and v_c - v_u, zero outside the guided channels; from one batch of 2 B rows."""
    x, t, s = (torch.cat([z, z]) for z in (x, t, s))
    both = average_velocity(net, x, t, s, torch.cat([y, torch.full_like(y, null)]))
    conditional, unconditional = both.chunk(2)
    difference = conditional - unconditional
    if guidance.channels is not None:
        difference[:, guidance.channels :] = 0
    return conditional, difference


def calibrate(
    net: Callable[..., Output], guidance: Guidance, null: int, x: Tensor, t: Tensor, y: Tensor, rows: int = 64
) -> float:
    """Norm of v_c - v_u by the rule of ``guidance.eta``, over samples whose time lies in the interval.

    Args:
        x, t, y: points of the path (N, C, H, W), their times (N,) and labels (N,).
        rows: samples per call of the network.

    Raises:
        ValueError: no time lies in the interval.
    """
    low, high = guidance.interval
    inside = (t >= low) & (t <= high)
    if not bool(inside.any()):
        raise ValueError(f"no calibration time lies in guidance.interval {guidance.interval}")
    x, t, y = x[inside], t[inside], y[inside]
    norms = []
    with torch.no_grad():
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            _, difference = differences(net, guidance, null, x[part], t[part], t[part], y[part])
            norms.append(_norm(difference).double())
    found = torch.cat(norms)
    return float(found.quantile(0.9) if guidance.eta == "p90" else found.mean())


def _norm(difference: Tensor) -> Tensor:
    """Euclidean norm per sample over C, H, W, float32, shape (B,)."""
    return difference.float().flatten(1).norm(dim=1)
