"""The files that figures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...common.provenance import is_stale
from ...config.specs import TableSpec
from ..metrics import load_metrics
from ..rows import FilledTable, fill_table


@dataclass(frozen=True)
class FigureInputs:
    """Each kind of figure uses some of these files."""

    metrics: list[Path]
    curves: list[Path]
    """train.jsonl files."""
    images: list[Path]
    """Tars of samples."""
    reference: Path | None
    """npz with real points."""

    def fill_table(self, spec: TableSpec) -> FilledTable:
        """The rows of the figure's table; errors as for :func:`fill_table`."""
        return fill_table(spec, load_metrics(self.metrics), is_stale)
