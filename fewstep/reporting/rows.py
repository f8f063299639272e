"""The rows of a table: measured numbers beside the reported ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path

from ..common.csv_files import read_csv
from ..config.specs import TableSpec
from ..config.tables import LARGER_IS_BETTER, Row
from .formatting import Number, NumberList, WholeNumber, parse_rows, rounded, to_csv
from .metrics import CellMetric, Entry, Metrics, differs, gather, warnings_of

FULL_SCALES = ("paper", "toy")
"""Scales at which a number stands beside the paper's: experiments with toys are as small there."""

OWN = "own"
"""Scale of a user's own images, of which no paper has numbers."""


def is_miniature(scale: str) -> bool:
    """Whether numbers of a scale cannot be compared with a paper's, which there is."""
    return scale not in (*FULL_SCALES, OWN)


IsStale = Callable[[Entry], bool]


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A method of a table at one number of steps: one line of the CSV file, whose columns are these fields.

    Numbers are rounded to six significant digits, and None where there are none.
    """

    table: str
    row: str
    """id of the row in the table's configuration; with several numbers of steps it has several lines."""
    group: str
    label: str
    params: str
    steps: int
    nfe_label: str
    sampler: str
    method: str
    variant: str
    metric: str
    reported: Number
    ours: Number
    ours_std: Number
    seeds: str
    """measured/asked for."""
    images: str
    evaluations: str
    """Of the network, for one image."""
    flops_per_step: Number = None
    status: str
    difference: Number
    tolerance: Number
    agrees: str
    """yes, no, or empty where nothing is compared."""
    protocol: str
    note: str
    warnings: str
    """What a reader must know of our number."""
    cost: Number = None
    """Operations of a training step over those of the table's unit."""
    rank: WholeNumber = None
    """Within its number of steps, 1 is the best number."""
    parameter: Number = None
    """Of a sweep; None for a run whose loss does not have it."""
    values: NumberList = field(default_factory=list)
    """Of a sweep: the metric of every seed."""
    more: Mapping[str, Number]
    """Columns `reported_METRIC`, one for each other protocol, and `ours_METRIC`."""

    def __getitem__(self, column: str) -> object:
        return self.more[column] if column in self.more else getattr(self, column)


_FIELDS = [entry.name for entry in fields(TableRow)]


@dataclass(frozen=True)
class FilledTable:
    """A table with what was measured: its rows in order, and the columns of its CSV file."""

    columns: list[str]
    rows: list[TableRow]

    def by_method(self) -> list[list[TableRow]]:
        """The rows of each row id, which differ in their number of steps."""
        return [list(group) for _, group in groupby(self.rows, key=lambda row: row.row)]

    def best_first(self) -> list[list[TableRow]]:
        """The same in the order of the first number; without it last.

        With :attr:`step_labels` that is the number in the first of these columns.
        """
        first = self.step_labels[:1]

        def place(rows: list[TableRow]) -> float:
            return badness(rows[0]) if not first or rows[0].nfe_label == first[0] else math.inf

        return sorted(self.by_method(), key=place)

    @property
    def step_labels(self) -> list[str]:
        """Numbers of steps that are columns for readers; empty where each number has a line of its own.

        They are columns if most methods have the same several, and the others have some of these.
        """
        methods = [[row.nfe_label for row in rows] for rows in self.by_method()]
        columns = max(methods, key=len, default=[])
        known = all(set(labels) <= set(columns) for labels in methods)
        most = 2 * methods.count(columns) > len(methods)
        return columns if len(columns) > 1 and known and most else []

    def in_columns(self, rows: Sequence[TableRow]) -> list[TableRow | None]:
        """A method's rows in the columns of :attr:`step_labels`; None for a number of steps that it lacks."""
        found = {row.nfe_label: row for row in rows}
        return [found.get(label) for label in self.step_labels]

    @property
    def metric(self) -> str:
        return self.rows[0].metric if self.rows else ""

    @property
    def _others(self) -> list[str]:
        """The columns that are not fields of a row."""
        return [name for name in self.columns if name not in _FIELDS]

    @property
    def reported_metrics(self) -> list[str]:
        """Further metrics that the paper reports."""
        return [name.removeprefix("reported_") for name in self._others if name.startswith("reported_")]

    @property
    def extra_metrics(self) -> list[str]:
        """Further metrics that were measured."""
        return [name.removeprefix("ours_") for name in self._others if name.startswith("ours_")]

    @property
    def other_protocols(self) -> list[str]:
        """Protocols beside the first that some number was measured under."""
        names = [name for name in self._others if not name.startswith(("reported_", "ours_"))]
        return [name for name in names if any(row[name] is not None for row in self.rows)]

    @property
    def notes(self) -> list[str]:
        """The distinct notes of the rows, in order; a row refers to its note by position."""
        return list(dict.fromkeys(row.note for row in self.rows if row.note))

    @property
    def has_reported(self) -> bool:
        return any(row.reported is not None for row in self.rows)

    def distinct(self, column: str) -> list[str]:
        """The texts of a column that are not empty, sorted."""
        return sorted({str(row[column]) for row in self.rows} - {""})

    def to_csv(self) -> str:
        rows = ({name: row[name] for name in self.columns} for row in self.rows)
        return to_csv(self.columns, rows, sealed=True)


def read_table(path: str | Path) -> FilledTable:
    """Read back what :meth:`FilledTable.to_csv` wrote; errors as for `read_csv` and `parse_rows`."""
    columns, lines = read_csv(path, sealed=True)
    more = [{name: line.pop(name) for name in columns if name not in _FIELDS} for line in lines]
    rows = [line | {"more": numbers} for line, numbers in zip(lines, more, strict=True)]
    return FilledTable(columns, parse_rows(TableRow, rows, path))


def fill_table(spec: TableSpec, metrics: Metrics, is_stale: IsStale) -> FilledTable:
    """A table with what was measured.

    Args:
        spec: The table, and which cells fill it.
        metrics: From :func:`load_metrics`.
        is_stale: Whether a metrics file was made by other code than the present; of common/provenance.py.

    Raises:
        ValueError: a metrics file lacks a metric, or a protocol has the name of a column.
    """
    table = spec.table
    for name in spec.protocols[1:]:
        if name in _FIELDS:
            raise ValueError(f"protocol {name!r} is also a column of the table; rename the protocol")
    rows = [
        _fill_row(spec, row, column, metrics, is_stale)
        for row in table.rows
        for column in range(len(row.steps or table.steps or []))
    ]
    unit = next((row.flops_per_step for row in rows if row.row == table.unit), None)
    if unit:
        rows = [
            replace(row, cost=rounded(row.flops_per_step / unit)) if row.flops_per_step else row
            for row in rows
        ]
    if not table.ranked:
        return FilledTable(columns_of(spec), rows)
    rows = [replace(row, rank=_rank(row, rows)) for row in rows]
    ranked = FilledTable(columns_of(spec), rows).best_first()
    return FilledTable(columns_of(spec), [row for group in ranked for row in group])


def _rank(row: TableRow, rows: Sequence[TableRow]) -> int | None:
    """Place among the methods with this number of steps."""
    if row.ours is None:
        return None
    return 1 + sum(badness(other) < badness(row) for other in rows if other.nfe_label == row.nfe_label)


def badness(row: TableRow) -> float:
    """Our number, the lower the better; infinite where there is none."""
    if row.ours is None:
        return math.inf
    return -row.ours if row.metric in LARGER_IS_BETTER else row.ours


def columns_of(spec: TableSpec) -> list[str]:
    """The columns of a table's CSV file."""
    after = {
        "reported": [f"reported_{name}" for name in _also_reported(spec)],
        "evaluations": [*spec.protocols[1:], *(f"ours_{name}" for name in spec.extra_metrics)],
    }
    absent = {"more"} if spec.table.ranked else {"more", "rank"}
    absent |= {"flops_per_step", "cost"} if spec.table.unit is None else set()
    absent |= {"parameter", "values"} if spec.table.kind != "sweep" else set()
    names = [name for name in _FIELDS if name not in absent]
    return [column for name in names for column in [name, *after.get(name, [])]]


def _also_reported(spec: TableSpec) -> list[str]:
    names = dict.fromkeys(name for row in spec.table.rows for name in row.reported)
    return [name for name in names if name != spec.table.metric]


def _fill_row(spec: TableSpec, row: Row, column: int, metrics: Metrics, is_stale: IsStale) -> TableRow:
    table = spec.table
    steps = (row.steps or table.steps or [])[column]
    cells = next((entry.cells for entry in spec.rows if entry.id == row.id), {})
    keys = {name: columns[column] for name, columns in cells.items()}
    first = next((name for name in spec.protocols if name in keys), "")
    asked = keys.get(first, [])
    ours = gather(metrics, asked, table.metric)
    reported = {name: rounded(numbers[column]) for name, numbers in row.reported.items()}

    def measured(protocol: str, metric: str) -> float | None:
        return rounded(gather(metrics, keys.get(protocol, []), metric).mean)

    more = {f"reported_{name}": reported.get(name) for name in _also_reported(spec)}
    more |= {name: measured(name, table.metric) if name != first else None for name in spec.protocols[1:]}
    more |= {f"ours_{name}": measured(protocol, name) for name, protocol in spec.extra_metrics.items()}
    other = any(differs(entry, table.metric) for entry in ours.entries)
    target = None if other else reported.get(table.metric)
    difference, tolerance, agrees = _agreement(spec, ours.mean, target)
    return TableRow(
        table=spec.name,
        row=row.id,
        group=row.group,
        label=row.label,
        params=row.params,
        steps=steps,
        nfe_label=row.nfe_label[column] if row.nfe_label else str(steps),
        sampler=asked[0].sampler if asked else "",
        method=row.method or "",
        variant=row.variant if row.method else "",
        metric=table.metric,
        reported=reported.get(table.metric),
        ours=rounded(ours.mean),
        ours_std=rounded(ours.std),
        seeds=f"{len(ours.values)}/{len(asked)}" if asked else "",
        images=ours.common("images"),
        evaluations=ours.common("evaluations"),
        more=more,
        flops_per_step=rounded(ours.flops_per_step) if table.unit is not None else None,
        status=_status(spec, row, ours, is_stale, other),
        difference=difference,
        tolerance=tolerance,
        agrees=agrees,
        protocol=first,
        note=row.note,
        warnings="; ".join(dict.fromkeys(text for entry in ours.entries for text in warnings_of(entry))),
        parameter=spec.parameters.get(row.id),
        values=[rounded(value) for value in ours.values] if table.kind == "sweep" else [],
    )


def _status(spec: TableSpec, row: Row, ours: CellMetric, is_stale: IsStale, other: bool) -> str:
    """What stands behind a number; ``other``: not the published numbers' scorer."""
    if row.method is None:
        return "reported only"
    if not ours.values:
        return "missing"
    if any(is_stale(entry) for entry in ours.entries):
        return "stale"
    if is_miniature(spec.scale):
        return "miniature"
    if any(entry.get("status") == "released" for entry in ours.entries):
        return "released weights"
    if spec.scale == OWN:
        return "measured"
    return "another scorer" if other else "reproduced"


def _agreement(
    spec: TableSpec, ours: float | None, reported: float | None
) -> tuple[float | None, float | None, str]:
    """Difference, tolerance, verdict; none below full scale, where the two numbers mean different things."""
    if ours is None or reported is None or spec.scale not in FULL_SCALES:
        return None, None, ""
    tolerance = max(spec.table.tolerance.absolute, spec.table.tolerance.relative * abs(reported))
    difference = ours - reported
    return rounded(difference), rounded(tolerance), "yes" if abs(difference) <= tolerance + 1e-9 else "no"
