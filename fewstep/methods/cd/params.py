from __future__ import annotations

from typing import Literal

from ...config.objectives import ConsistencyTerms


class CDParams(ConsistencyTerms):
    title = "Consistency distillation"
    papers = ("2602.10764",)
    note = "row (d) of DE-CM's Table 3"
    provenance = {
        "loss": "code",
        "loss.times.law": "paper",
        "loss.times.segments": "inferred",  # the paper says N segments; 100 holds every grid of the samplers
        "loss.alpha_power": "inferred",  # the paper has (1 - t) / 2, which it meets at t = 1, as an example
        "loss.norm_power": "paper",
    }

    name: Literal["cd"] = "cd"
