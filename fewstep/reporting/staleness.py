"""Whether a number was made by the present code."""

from __future__ import annotations

from ..config.specs import RunName
from ..provenance import code_digest
from .metrics import Entry


def is_stale(entry: Entry, run: RunName | None) -> bool:
    """Whether the code behind the training of a metrics file has changed; published weights have none."""
    code = entry.get("code")
    return code is not None and (run is None or code != code_digest(run.loss))
