"""Samplers: Euler, consistency (re-noising), mix of both, flow-map jumps, UCGM's, and Euler over a pyramid.

DE-CM, arXiv 2602.10764, section 4.5 and Fig. 5. Jumps with gamma in (0, 1] are CTM's gamma-sampling
(arXiv 2310.02279, section 4): on the way to t' the jump overshoots to u > t', where
the noise level (1 - u) / u is sqrt(1 - gamma^2) times that of t', and fresh noise makes up the rest.
gamma = 0 are plain jumps, gamma = 1 are consistency steps. ``ucgm`` is Algorithm 2 of arXiv 2505.07447.
``pyramid`` is that of decomposable flow matching (arXiv 2506.19839, section 3).

Deviations from the papers:

* The switch point of the mix sampler is not given there: ``Sampler.switch`` is the time from which
  steps are consistency steps, 0.5 by default.
* Euler is read as F(x, t, s = t), as the reported 4-step quality suggests; F(x, t_i, s = t_(i+1))
  is the ``jump`` sampler.
* With three scales or more, the release of decomposable flow matching has no schedule that rises: here a
  scale reaches the data when the next one reaches the threshold.
* UCGM extrapolates data and noise one by one, as its release does. That acts on the velocity as kappa /
  (1 - kappa) and is of second order at kappa = 1 / 3, not at the 1 / 2 of its Theorem 5. Its Heun correction
  and its rho that depends on the step are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ..config.backbones import FlowNetwork
from ..config.base import Strict
from ..config.settings import PyramidSampling, Sampler, UCGMSampling
from ..core.guidance import Times
from ..core.pyramid import compose, pack, sides, unpack

Field = Callable[[Tensor, Times, Times], Tensor]


def time_grid(steps: int, shift: float = 1.0) -> Tensor:
    """Times 0 = t_0 < ... < t_steps = 1, float64: t = shift u / (1 + (shift - 1) u) of uniform u."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    t = shift * u / (1 + (shift - 1) * u)
    t[-1] = 1  # not exactly so in floating point
    return t


def evaluations_per_image(sampler: Sampler, steps: int, guided: bool) -> int:
    """Evaluations of the network for one image: one per step, two where guidance also asks without a label.

    Raises:
        ValueError: the sampler cannot take ``steps`` steps.
    """
    _check(sampler, steps)
    return steps * (2 if guided else 1)


def integrate(
    sampler: Sampler, field: Field, x0: Tensor, steps: int, noise: Callable[[int], Tensor]
) -> Tensor:
    """Carry noise ``x0`` (B, ...) at t = 0 to t = 1 in ``steps`` steps; shape and dtype of x0.

    * euler: x += (t_(i+1) - t_i) F(x, t_i, s = t_i).
    * jump: x += (t_(i+1) - t_i) F(x, t_i, s = t_(i+1)); with gamma > 0 the jump ends at u > t_(i+1)
      and x = (t_(i+1) / u) x + gamma (1 - t_(i+1)) noise(i), except after the last step.
    * cm: x1 = x + (1 - t_i) F(x, t_i, 1), then x = t_(i+1) x1 + (1 - t_(i+1)) noise(i), except after
      the last step.
    * ucgm: on the times of `ucgm_grid`, with u = F(x, t_i, s) and s = t_i, 1 or t_(i+1) (``condition``):
      xh = x + (1 - t_i) u, zh = x - t_i u, both moved on by kappa times their change since the last step
      (from the third step on, but not in the last); then
      x = t_(i+1) xh + (1 - t_(i+1)) (sqrt(1 - rho) zh + sqrt(rho) noise(i)).
    * mix: first one jump from 0 to t_1 (noise to noisy), then Euler steps while t_i < switch, then
      cm steps; the last step is always a cm step. With switch = 0 only the first step is deterministic.

    * pyramid: `pyramid_grid`; x0 is the noise of the finest scale, and that of scale i a corner of noise(i).

    Args:
        field: average velocity F(x, t, s) with x in float32; t and s are numbers, the same for all rows, or
            one for each scale of a pyramid, which is then x (core/pyramid.py).
        noise: standard normal noise in the shape of x0 for step i, asked for once each.

    Nothing here waits for the device.

    The state is kept in float64, so that many short steps add up.

    Raises:
        ValueError: the sampler cannot take ``steps`` steps.
    """
    _check(sampler, steps)
    if sampler.ucgm is not None:
        return _integrate_ucgm(sampler.ucgm, field, x0, steps, noise)
    if sampler.pyramid is not None:
        return _integrate_pyramid(sampler.pyramid, field, x0, noise)
    grid = [*sampler.times, 1.0] if sampler.times else time_grid(steps, sampler.shift).tolist()
    x = x0.double()
    with torch.no_grad():
        for i, (now, after) in enumerate(pairwise(grid)):
            end = _end(sampler, i, now, after, last=i == steps - 1)
            F = field(x.float(), now, end).double()
            reached = max(end, after)
            x = x + (reached - now) * F
            if reached > after:
                strength = sampler.gamma if sampler.kind == "jump" else 1.0
                x = after / reached * x + strength * (1 - after) * noise(i).to(x)
    return x.to(x0.dtype)


def ucgm_grid(options: UCGMSampling, steps: int) -> Tensor:
    """Times t_0 < ... < t_steps = 1, float64: (1 - (1 - g^a)^b)^c of ``steps`` even g, and 1.

    g runs from the first gap to 1 less the last gap; without a last gap its end, 1 itself, is not a step.
    """
    (first, last), (a, b, c) = options.gaps, options.schedule
    count = steps if last else steps + 1
    g = torch.linspace(first, 1 - last, count, dtype=torch.float64)[:steps]
    t = (1 - (1 - g.pow(a)).pow(b)).pow(c)
    return torch.cat([t, torch.ones(1, dtype=torch.float64)])


def _integrate_ucgm(
    options: UCGMSampling, field: Field, x0: Tensor, steps: int, noise: Callable[[int], Tensor]
) -> Tensor:
    """UCGM's sampler; see :func:`integrate`."""
    x, before = x0.double(), None
    kappa, rho = options.kappa, options.rho
    with torch.no_grad():
        for i, (now, after) in enumerate(pairwise(ucgm_grid(options, steps).tolist())):
            end = {"velocity": now, "end": 1.0, "next": after}[options.condition]
            u = field(x.float(), now, end).double()
            raw = data, old_noise = x + (1 - now) * u, x - now * u
            if before is not None and i > 1 and after < 1:
                data, old_noise = (one + kappa * (one - old) for one, old in zip(raw, before, strict=True))
            before = raw
            if after < 1 and rho > 0:
                old_noise = math.sqrt(1 - rho) * old_noise + math.sqrt(rho) * noise(i).to(x)
            x = after * data + (1 - after) * old_noise
    return x.to(x0.dtype)


def pyramid_grid(options: PyramidSampling) -> list[tuple[float, ...]]:
    """Times of the scales before each step, and after the last: the rows of a table.

    While a scale goes from 0 to the threshold, or the last one to 1, the one before it goes on to 1. Scales
    that have not started stay at 0. All steps of a scale are equal.
    """
    scales = len(options.steps)
    rows = []
    for stage, steps in enumerate(options.steps):
        end = 1.0 if stage == scales - 1 else options.threshold
        for step in range(steps):
            done = step / steps
            before = options.threshold + (1 - options.threshold) * done
            row = [1.0] * max(stage - 1, 0) + [before] * (stage > 0) + [end * done]
            rows.append((*row, *[0.0] * (scales - 1 - stage)))
    return [*rows, (1.0,) * scales]


def _integrate_pyramid(
    options: PyramidSampling, field: Field, x0: Tensor, noise: Callable[[int], Tensor]
) -> Tensor:
    """Euler steps over a pyramid; see :func:`integrate`."""
    shapes = sides(x0.shape[2], x0.shape[3], len(options.steps))
    parts = [noise(scale)[:, :, :height, :width] for scale, (height, width) in enumerate(shapes[:-1])]
    x = [part.to(x0).double() for part in (*parts, x0)]
    stages = [stage for stage, steps in enumerate(options.steps) for _ in range(steps)]
    with torch.no_grad():
        for stage, (now, after) in zip(stages, pairwise(pyramid_grid(options)), strict=True):
            # Scales that have not started are not shown to the network.
            shown = [part if scale <= stage else torch.zeros_like(part) for scale, part in enumerate(x)]
            F = unpack(field(pack(shown).float(), now, now).double(), shapes)
            x = [part + (b - a) * v for part, v, a, b in zip(x, F, now, after, strict=True)]
    return compose(x).to(x0.dtype)


def check_network(sampler: Sampler, backbone: Strict, name: str) -> None:
    """Refuse to sample from a network in a way that is not its own.

    Raises:
        ValueError: a pyramid is sampled as a latent, or the reverse, or has another number of scales.
    """
    scales = sampler.scale_count
    own = backbone.scale_count if isinstance(backbone, FlowNetwork) else 1
    if scales != own:
        raise ValueError(f"{name}: sampler {sampler.kind} is for scales: {scales}, but the network has {own}")


def _end(sampler: Sampler, i: int, now: float, after: float, last: bool) -> float:
    """Target time s that the network is given in step i; 1 means a consistency step."""
    if sampler.kind == "euler":
        return now
    if sampler.kind == "jump":
        # Of all u it is the one with (1 - u) / u = sqrt(1 - gamma^2) (1 - after) / after.
        return after / (after + math.sqrt(1 - sampler.gamma**2) * (1 - after)) if sampler.gamma else after
    if sampler.kind == "mix" and i == 0:
        return after
    if sampler.kind == "mix" and now < sampler.switch and not last:
        return now
    return 1.0


def _check(sampler: Sampler, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}: a sampler takes at least one step")
    if sampler.times is not None and steps != len(sampler.times):
        raise ValueError(f"steps is {steps}: the sampler names the times of {len(sampler.times)} steps")
    if sampler.pyramid is not None and steps != sum(sampler.pyramid.steps):
        raise ValueError(f"steps is {steps}: the sampler's pyramid.steps are {sampler.pyramid.steps}")
    if sampler.kind == "mix" and steps == 1:
        raise ValueError(
            "steps is 1: the mix sampler spends its first step on a jump to noisy data and needs a second "
            "to reach the data; use kind: cm for one step"
        )
