from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...config.objectives import RecursiveTerms


class RCGMParams(RecursiveTerms):
    title = "RCGM"
    papers = ("2512.05150",)
    note = "the any-step base of TwinFlow"
    provenance = {
        "loss": "code",
        "loss.segments": "paper",
        "loss.target_decay": "inferred",  # as others report of the paper
    }

    name: Literal["rcgm"] = "rcgm"
    target_decay: float | None = Field(
        default=0.999, ge=0, lt=1, description="of the target network's average; null: the network itself"
    )
