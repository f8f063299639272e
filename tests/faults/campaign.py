"""How long the campaign of faults is, and what it has counted."""

from __future__ import annotations

import os
from collections import Counter

COUNT = int(os.environ.get("FEWSTEP_FAULTS", "12"))
"""Faults of each kind of file; for a campaign FEWSTEP_FAULTS=1000. There are a fourth as many kills."""
LONG = COUNT > 12

damage: Counter[str] = Counter()
"""Faults of files by their outcome."""
kills: Counter[str] = Counter()
"""Kills by what was killed, and what was wrong with the results."""
