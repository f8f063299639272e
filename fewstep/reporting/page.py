"""The HTML page: tables, figures and claims in one file that loads nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from .. import __version__
from ..common.files import reading
from ..config.specs import ReportSpec
from .claim_checks import read_claims
from .formatting import format_number
from .markdown import MINIATURE, ours_text, sign_texts
from .metrics import metric_name
from .rows import OWN, TableRow, read_table

STATUS_TEXTS = {
    "reproduced": "trained and measured here, at the paper's scale",
    "released weights": "measured here on published weights",
    "another scorer": "measured here by another scorer than the paper's number; not comparable",
    "measured": "trained and measured here",
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
    tables, pictures = {}, {}
    for item in spec.items:
        if item.kind == "table" and f"{item.name}.csv" in parts:
            tables[item.name] = read_table(parts[f"{item.name}.csv"])
        elif item.kind != "table" and f"{item.name}.png" in parts:
            pictures[item.name] = _picture(parts[f"{item.name}.png"])
    rows = [row for table in tables.values() for row in table.rows]
    claims = read_claims(parts["claims.csv"]) if "claims.csv" in parts else []
    statuses = Counter(row.status for row in rows)
    environment = Environment(
        loader=PackageLoader("fewstep.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "ours": ours_text, "hint": hint, "inline": inline}
    environment.filters |= {"metric_name": metric_name, "sign_texts": sign_texts, "in_words": in_words}
    return environment.get_template("report.html.j2").render(
        spec=spec,
        version=__version__,
        miniature=spec.scale not in ("paper", OWN),
        own=spec.scale == OWN,
        warning=MINIATURE,
        tables=tables,
        pictures=pictures,
        claims=claims,
        verdicts=Counter(claim.holds for claim in claims),
        statuses=[(name, statuses[name], text) for name, text in STATUS_TEXTS.items() if statuses[name]],
        agreeing=sum(row.agrees == "yes" for row in rows),
        compared=sum(row.agrees != "" for row in rows),
        deviations=deviations,
    )


def _picture(path: Path) -> str:
    """A PNG file as base64, after a look at the checksums of its parts."""
    with reading(path, "a whole picture, make it again"):
        content = path.read_bytes()
        Image.open(io.BytesIO(content), formats=["PNG"]).verify()
    return base64.b64encode(content).decode()


def hint(row: TableRow) -> str:
    """The tooltip of a number: what it is, in a line."""
    parts = [row.status]
    if row.sampler:
        parts.append(f"{row.method}/{row.variant}, {row.sampler}, {row.evaluations or '?'} evaluations")
    if row.seeds:
        parts.append(f"seeds {row.seeds}")
    if row.difference is not None:
        difference = format_number(row.difference, row.metric, signed=True)
        parts.append(f"difference {difference}, tolerance {format_number(row.tolerance, row.metric)}")
    return "; ".join([*parts, *([row.warnings] if row.warnings else [])])


def inline(text: str) -> Markup:
    """Escaped text in which `x` and ``x`` are code."""
    return Markup(re.sub(r"``(.+?)``|`(.+?)`", r"<code>\1\2</code>", str(escape(text))))


def in_words(value: Any) -> str:
    """A field of a protocol, without what is not set in it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items() if inner is not None)
    return ", ".join(map(in_words, value)) if isinstance(value, list) else str(value)
