"""A student of FACM without a second time: where samplers find its velocity and its flow map."""

from __future__ import annotations

import torch

from fewstep.config.settings import Sampler
from fewstep.core.guidance import guided_field
from fewstep.evaluation.generator import expanded_interval_velocity
from fewstep.evaluation.samplers import integrate


def conditions(kind: str, steps: int) -> list[float]:
    """The time conditions that a network sees under a sampler."""
    seen: list[float] = []

    def net(x, t, s, y):
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    y = torch.zeros(1, dtype=torch.long)
    field = guided_field(expanded_interval_velocity(net), None, 1, y)
    start = torch.zeros(1, 1, 2, 2)
    integrate(Sampler(kind=kind), field, start, steps, lambda step: torch.zeros_like(start))
    return seen


def test_euler_reads_the_velocity_on_the_expanded_interval():
    assert conditions("euler", 4) == [2.0, 1.75, 1.5, 1.25]


def test_consistency_steps_keep_the_plain_time():
    assert conditions("cm", 4) == [0.0, 0.25, 0.5, 0.75]
