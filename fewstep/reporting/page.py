"""The HTML page: tables, figures and claims in one file that loads nothing else."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import __version__
from ..config.settings import Protocol
from ..config.specs import ReportItem, ReportSpec
from .claim_checks import read_claims
from .formatting import format_number
from .markdown import MINIATURE, ours_text, sign_texts
from .metrics import metric_name
from .rows import FilledTable, TableRow, read_table

STATUS_TEXTS = {
    "reproduced": "trained and measured here, at the paper's scale",
    "released weights": "measured here on published weights",
    "miniature": "trained and measured here on the demo's data; not comparable with the paper's number",
    "stale": "the code of the training or of the score has changed since",
    "missing": "asked for, not measured yet",
    "reported only": "the paper's number; no method of ours stands behind it",
}


def render_page(spec: ReportSpec, parts: Mapping[str, Path], deviations: Callable[[str], list[str]]) -> str:
    """The page as HTML text.

    Args:
        spec: What to show, in which order.
        parts: File name -> file: ``NAME.csv`` of tables, ``NAME.png`` of figures, ``claims.csv``.
        deviations: Name of a loss -> where it deviates from its paper, an item each.
    """
    shown = [_part(spec, item, parts) for item in spec.items]
    rows = [row for part in shown if part.table for row in part.table.rows]
    claims = read_claims(parts["claims.csv"]) if "claims.csv" in parts else []
    statuses = Counter(row.status for row in rows)
    environment = Environment(
        loader=PackageLoader("fewstep.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, ours=ours_text)
    for function in (metric_name, sign_texts, hint, inline):
        environment.filters[function.__name__] = function
    return environment.get_template("report.html.j2").render(
        spec=spec,
        version=__version__,
        miniature=spec.scale != "paper",
        warning=MINIATURE,
        parts=shown,
        claims=claims,
        verdicts=Counter(claim.holds for claim in claims),
        statuses=[(name, statuses[name], text) for name, text in STATUS_TEXTS.items() if statuses[name]],
        agreeing=sum(row.agrees == "yes" for row in rows),
        compared=sum(row.agrees != "" for row in rows),
        protocols={name: _protocol(entry) for name, entry in spec.protocols.items()},
        methods=[(name, entry, deviations(entry.loss)) for name, entry in spec.methods.items()],
        rerun=f"{spec.command} report",
    )


@dataclass(frozen=True)
class _Part:
    """A table or figure; neither if it was not given to the report."""

    item: ReportItem
    command: str
    table: FilledTable | None
    picture: str | None
    """PNG in base64."""


def _part(spec: ReportSpec, item: ReportItem, parts: Mapping[str, Path]) -> _Part:
    is_table = item.kind == "table"
    path = parts.get(f"{item.name}.csv" if is_table else f"{item.name}.png")
    table = read_table(path) if path and is_table else None
    picture = base64.b64encode(path.read_bytes()).decode() if path and not is_table else None
    return _Part(item, f"{spec.command} {item.target}", table, picture)


def hint(row: TableRow) -> str:
    """The tooltip of a number: what it is, in a line."""
    parts = [row.status]
    if row.sampler:
        parts.append(f"{row.method}/{row.variant}, {row.sampler}, {row.evaluations or '?'} evaluations")
    if row.seeds:
        parts.append(f"seeds {row.seeds}")
    if row.difference is not None:
        difference = format_number(row.difference, signed=True)
        parts.append(f"difference {difference}, tolerance {format_number(row.tolerance)}")
    return "; ".join(parts)


def inline(text: str) -> Markup:
    """Escaped text in which `x` and ``x`` are code."""
    pieces = re.split(r"``(.+?)``|`(.+?)`", text)
    shown = [
        escape(piece) if position % 3 == 0 else Markup("<code>{}</code>").format(piece)
        for position, piece in enumerate(pieces)
        if piece is not None
    ]
    return Markup("").join(shown)


def _protocol(protocol: Protocol) -> dict[str, str]:
    """The fields of a protocol in words, without those that are not set."""
    return {key: _words(value) for key, value in protocol.model_dump(exclude_none=True).items()}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
    return str(value)
