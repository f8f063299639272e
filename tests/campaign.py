"""How long the campaign of faults is, and what it has counted."""

from __future__ import annotations

import os
from collections import Counter

COUNT = int(os.environ.get("FEWSTEP_FAULTS", "12"))
"""Faults of each kind of file; for a campaign FEWSTEP_FAULTS=1000. There are a fourth as many kills."""
LONG = COUNT > 12

ACCEPTED = "accepted with another result"

damage: Counter[str] = Counter()
"""Faults of files by their outcome."""
kills: Counter[str] = Counter()
"""Kills by what was killed, and what was wrong with the results."""


def count_damage(outcomes: Counter[str]) -> None:
    """Count the faults of one kind of file; none may be accepted with another result."""
    damage.update({"kinds of file": 1, "faults": outcomes.total(), ACCEPTED: 0, **outcomes})
    assert not outcomes[ACCEPTED], outcomes
