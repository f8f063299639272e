"""The papers' claims, inequalities between cells, checked on measured numbers, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from operator import ge, gt, le, lt
from pathlib import Path
from statistics import mean, stdev

from ..common.csv_files import read_csv
from ..config.specs import ClaimsSpec
from ..config.tables import CellName, Claim
from .formatting import (
    Number,
    NumberList,
    TextList,
    format_mean,
    format_number,
    parse_rows,
    rounded,
    to_csv,
)
from .metrics import Metrics, is_measured, value_of

_RELATIONS = {"<": lt, "<=": le, ">": gt, ">=": ge}
_SIGNS = {"<=": "≤", ">=": "≥"}
_VERDICTS = {"holds": "yes", "fails": "no"}


@dataclass(frozen=True)
class CheckedClaim:
    """A claim with what was measured: one line of the CSV file. Numbers have six significant digits."""

    id: str
    statement: str
    source: str
    metric: str
    left: str
    """Name of the cell."""
    left_mean: Number
    left_std: Number
    """None for a cell that is one and the same for all seeds."""
    relation: str
    factor: float
    """Of the right sides."""
    right: TextList
    right_mean: NumberList
    right_std: NumberList
    worst_ratio: Number
    """left / right where the claim is nearest to failing, to be compared with ``factor``."""
    seeds: str
    """holding/asked for."""
    holds: str
    """yes: every seed holds; no: a seed that is there fails; missing: none fails, but one lacks a cell."""
    expected: str
    """What is known for this scale: holds, fails, varies."""
    scale: str
    note: str

    @property
    def surprising(self) -> bool:
        """Whether the verdict is not the one that is known (`varies` is never surprising)."""
        return self.holds != "missing" and _VERDICTS.get(self.expected, self.holds) != self.holds

    @property
    def left_text(self) -> str:
        """`name: mean ± std` of the left side."""
        return f"{self.left}: {format_mean(self.left_mean, self.left_std, self.metric) or '–'}"

    @property
    def right_texts(self) -> list[str]:
        """The same of every right side."""
        sides = zip(self.right, self.right_mean, self.right_std, strict=True)
        return [f"{name}: {format_mean(average, std, self.metric) or '–'}" for name, average, std in sides]

    @property
    def bound(self) -> str:
        """The relation with its factor, as `≥ 3 ×`."""
        sign = _SIGNS.get(self.relation, self.relation)
        return sign if self.factor == 1 else f"{sign} {format_number(self.factor, exact=True)} ×"

    @property
    def ratio_text(self) -> str:
        return "–" if self.worst_ratio is None else f"{self.worst_ratio:.3f}"


def check_claims(spec: ClaimsSpec, metrics: Metrics) -> list[CheckedClaim]:
    """Check every claim. A seed counts when all cells of the claim are there for it.

    Raises:
        ValueError: a metrics file lacks a claim's metric.
    """
    return [_check(spec, claim, metrics) for claim in spec.claims]


def _check(spec: ClaimsSpec, claim: Claim, metrics: Metrics) -> CheckedClaim:
    relation = _RELATIONS[claim.relation]
    seeds = spec.cells[claim.id]
    measured = [
        [value_of(metrics[key], claim.metric) for key in keys]
        for keys in seeds
        if all(key in metrics and is_measured(metrics[key], claim.metric) for key in keys)
    ]
    left, *right = zip(*measured, strict=True) if measured else [()] * (1 + len(claim.right))
    held = sum(all(relation(ours, claim.factor * other) for other in others) for ours, *others in measured)
    ratios = [ours / other if other else float("inf") for ours, *others in measured for other in others]
    worst = (max if claim.relation in ("<", "<=") else min)(ratios) if ratios else None
    toy = claim.id in spec.toys
    return CheckedClaim(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        metric=claim.metric,
        left=_name(claim.left),
        left_mean=_mean(left),
        left_std=_std(left),
        relation=claim.relation,
        factor=claim.factor,
        right=[_name(cell) for cell in claim.right],
        right_mean=[_mean(values) for values in right],
        right_std=[_std(values) for values in right],
        worst_ratio=rounded(worst),
        seeds=f"{held}/{len(seeds)}",
        holds="no" if held < len(measured) else "yes" if held == len(seeds) else "missing",
        expected=claim.miniature if toy or spec.scale != "paper" else "holds",
        scale="toy" if toy else spec.scale,
        note=claim.note,
    )


def _mean(values: Sequence[float]) -> float | None:
    return rounded(mean(values)) if values else None


def _std(values: Sequence[float]) -> float | None:
    return rounded(stdev(values)) if len(set(values)) > 1 else None


def _name(cell: CellName) -> str:
    variant = "" if cell.variant == "base" else f"/{cell.variant}"
    return f"{cell.method}{variant} {cell.sampler} {cell.steps}"


def claims_csv(claims: Sequence[CheckedClaim]) -> str:
    """Claims as the text of a CSV file."""
    return to_csv([field.name for field in fields(CheckedClaim)], map(asdict, claims), sealed=True)


def read_claims(path: str | Path) -> list[CheckedClaim]:
    """Read back what :func:`claims_csv` wrote; errors as for :func:`read_csv` and :func:`parse_rows`."""
    return parse_rows(CheckedClaim, read_csv(path, sealed=True)[1], path)
