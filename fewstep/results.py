"""Metrics joined to the cells that ask for them, and the lines of a table made from them.

Torch-free. A metrics file says itself which cell it belongs to; its path is never looked at.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .config.base import parse
from .config.specs import CellKey, RowCells, TableSpec
from .config.tables import Row

Metrics = Mapping[CellKey, Mapping[str, Any]]
Line = dict[str, str]
IsStale = Callable[[Mapping[str, Any]], bool]
"""One line of a table's CSV: column -> text, empty where there is nothing to say."""

SMALL = 0.1
"""Below it two decimals say too little of a number (MMD²)."""
FULL = ("paper", "toy")
"""Scales at which a number stands beside the paper's: toys are as small there."""
STATUSES = ("reproduced", "released weights", "miniature", "stale", "missing", "reported only")


def load_metrics(paths: Iterable[str | Path]) -> dict[CellKey, dict[str, Any]]:
    """Read metrics files, keyed by the cell that each says it measures.

    Raises:
        ValueError: a file is unreadable or names no cell, or two files measure the same cell.
    """
    found: dict[CellKey, dict[str, Any]] = {}
    origin: dict[CellKey, str | Path] = {}
    for path in paths:
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
        if not isinstance(raw, dict) or "cell" not in raw:
            raise ValueError(f"{path}: no key `cell`; make the file with fewstep.score")
        cell = parse(CellKey, raw["cell"], str(path), "cell")
        if cell in found:
            raise ValueError(f"{path}: measures the same cell as {origin[cell]}: {cell}; remove one")
        found[cell], origin[cell] = raw, path
    return found


@dataclass(frozen=True)
class Cell:
    """One metric of one cell over its seeds."""

    mean: float
    std: float | None
    seeds: int
    entries: list[Mapping[str, Any]]


def gather(metrics: Metrics, keys: Sequence[CellKey], metric: str) -> Cell | None:
    """Mean and sample standard deviation over the seeds that are there; None when none is.

    Raises:
        ValueError: a file lacks the metric, or it is not finite.
    """
    entries = [metrics[key] for key in keys if key in metrics]
    if not entries:
        return None
    values = [value_of(entry, metric) for entry in entries]
    return Cell(mean(values), stdev(values) if len(values) > 1 else None, len(values), entries)


def value_of(entry: Mapping[str, Any], metric: str) -> float:
    """The metric of one metrics file."""
    value = entry.get(metric)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"metrics of {entry['cell']}: {metric} is {value!r}, not a finite number")
    return float(value)


def table_lines(spec: TableSpec, metrics: Metrics, is_stale: IsStale) -> list[Line]:
    """Every (row, NFE) of a table as one line.

    Args:
        spec: The table, and which cells fill it.
        metrics: From :func:`load_metrics`.
        is_stale: whether the code behind a metrics file is another one today; common/provenance.py.
    """
    cells = {row.id: row for row in spec.rows}
    lines = [
        line
        for row in spec.table.rows
        for line in _row_lines(
            spec, row, cells.get(row.id) or RowCells(id=row.id, cells={}), metrics, is_stale
        )
    ]
    if spec.table.unit is not None:
        _price(lines, spec.table.unit)
    return _ranked(lines) if spec.table.ranked else lines


def _row_lines(
    spec: TableSpec, row: Row, cells: RowCells, metrics: Metrics, is_stale: IsStale
) -> Iterable[Line]:
    table = spec.table
    step_counts = row.steps or table.steps or []
    extras = _extra_metrics(spec)
    for column, steps in enumerate(step_counts):
        keys = {name: cells.cells[name][column] for name in spec.protocols if name in cells.cells}
        first = next(iter(keys), "")
        asked = keys.get(first, [])
        ours = gather(metrics, asked, table.metric)
        reported = row.reported.get(table.metric, [None] * len(step_counts))[column]
        line: Line = {
            "table": spec.name,
            "row": row.id,
            "group": row.group,
            "label": row.label,
            "params": row.params,
            "steps": str(steps),
            "nfe_label": row.nfe_label[column] if row.nfe_label else str(steps),
            "sampler": asked[0].sampler if asked else "",
            "method": row.method or "",
            "variant": row.variant if row.method else "",
            "metric": table.metric,
            "reported": number(reported),
        }
        for name in extras:
            line[f"reported_{name}"] = number(row.reported.get(name, [None] * len(step_counts))[column])
        line |= {"ours": "", "ours_std": "", "seeds": "", "images": "", "evaluations": ""}
        if ours is not None:
            line["ours"], line["ours_std"] = number(ours.mean), number(ours.std)
            line["images"] = _common(ours, "images")
            line["evaluations"] = _common(ours, "evaluations")
        if asked:
            line["seeds"] = f"{ours.seeds if ours else 0}/{len(asked)}"
        for name in spec.protocols[1:]:
            if name in line:
                raise ValueError(f"protocol {name!r} is also a column of the table; rename the protocol")
            other = gather(metrics, keys.get(name, []), table.metric) if name != first else None
            line[name] = number(other.mean) if other else ""
        for name, protocol in spec.further.items():
            more = gather(metrics, keys.get(protocol, []), name)
            line[f"ours_{name}"] = number(more.mean) if more else ""
        if table.unit is not None:
            line["flops_per_step"] = number(_flops(ours)) if ours else ""
        line["status"] = _status(spec, row, ours, is_stale)
        line |= _agreement(spec, ours, reported)
        line["protocol"] = first
        line["note"] = row.note
        yield line


def _flops(cell: Cell) -> float | None:
    """Operations of a training step, the mean over seeds; None where a training did not count them."""
    found = [entry.get("model", {}).get("flops_per_step") for entry in cell.entries]
    return mean(found) if all(found) else None


def _price(lines: Sequence[Line], unit: str) -> None:
    """Add the column ``cost``: operations of a training step over those of the row ``unit``."""
    one = next((line["flops_per_step"] for line in lines if line["row"] == unit), "")
    for line in lines:
        own = line["flops_per_step"]
        line["cost"] = number(float(own) / float(one)) if own and one else ""


def _ranked(lines: Sequence[Line]) -> list[Line]:
    """Rows by their first column, best first and missing ones last, with the column ``rank`` within each NFE.

    Lower is better.
    """
    for steps in {line["nfe_label"] for line in lines}:
        column = [line for line in lines if line["nfe_label"] == steps]
        values = sorted(float(line["ours"]) for line in column if line["ours"])
        for line in column:
            line["rank"] = str(1 + values.index(float(line["ours"]))) if line["ours"] else ""
    first = {line["row"]: line for line in reversed(lines)}
    return sorted(lines, key=lambda line: float(first[line["row"]]["ours"] or "inf"))


def _extra_metrics(spec: TableSpec) -> list[str]:
    names = dict.fromkeys(name for row in spec.table.rows for name in row.reported)
    return [name for name in names if name != spec.table.metric]


def further(lines: Sequence[Line]) -> list[str]:
    """The further metrics that a table has columns for."""
    columns = [name for name in (lines[0] if lines else {}) if name.startswith("ours_")]
    return [name.removeprefix("ours_") for name in columns if name != "ours_std"]


def _common(cell: Cell, key: str) -> str:
    """What all seeds agree on."""
    values = {str(entry.get(key, "")) for entry in cell.entries}
    return "/".join(sorted(values))


def _status(spec: TableSpec, row: Row, ours: Cell | None, is_stale: IsStale) -> str:
    if row.method is None:
        return "reported only"
    if ours is None:
        return "missing"
    if any(is_stale(entry) for entry in ours.entries):
        return "stale"
    if spec.scale not in FULL:
        return "miniature"
    if any(entry.get("status") == "released" for entry in ours.entries):
        return "released weights"
    return "reproduced"


def _agreement(spec: TableSpec, ours: Cell | None, reported: float | None) -> Line:
    """Difference and verdict; nothing below full scale, where the two numbers mean different things."""
    empty = {"difference": "", "tolerance": "", "agrees": ""}
    if ours is None or reported is None or spec.scale not in FULL:
        return empty
    allowed = max(spec.table.tolerance.absolute, spec.table.tolerance.relative * abs(reported))
    difference = ours.mean - reported
    return {
        "difference": number(difference),
        "tolerance": number(allowed),
        "agrees": "yes" if abs(difference) <= allowed + 1e-9 else "no",
    }


def metric_name(metric: str, scale: str) -> str:
    """What a reader calls a metric. A Fréchet distance is an FID only on the paper's data and features."""
    names = {
        "fid": "FID" if scale == "paper" else "Fréchet distance",
        "is": "Inception score",
        "mmd": "MMD²",
        "kid": "KID" if scale == "paper" else "Kernel distance",
        "grad_norm": "Gradient norm",
    }
    return names.get(metric, metric.replace("_", " ").capitalize())


def number(value: float | None) -> str:
    """Up to six significant digits; empty for None."""
    return "" if value is None else f"{value:.6g}"


def short(text: str, signed: bool = False) -> str:
    """A number of the CSV for a reader: two decimals, one from 1000 on; empty stays empty."""
    if not text:
        return ""
    value = float(text)
    digits = 2 if abs(value) < 1000 else 1
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def precise(text: str) -> str:
    """A number of the CSV of any size for a reader: three digits; empty stays empty."""
    return f"{float(text):.3g}".replace("-", "−") if text else ""


def spread(mean_text: str, std_text: str) -> str:
    """Mean, with ± the standard deviation when there are several seeds; small numbers with three digits."""
    shown = precise if mean_text and 0 < abs(float(mean_text)) < SMALL else short
    return f"{shown(mean_text)} ± {shown(std_text)}" if std_text else shown(mean_text)


def to_csv(lines: Sequence[Mapping[str, str]]) -> str:
    """Lines with equal columns as CSV text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return stream.getvalue()


def read_csv(path: str | Path) -> list[Line]:
    """Read back what :func:`to_csv` wrote."""
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
