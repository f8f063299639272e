"""Gather tables, figures and claims into one self-contained HTML page."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from . import __version__
from .claims import bound, right_values, surprising
from .common.cli import parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import ReportSpec
from .methods import deviations
from .results import STATUSES, Line, further, metric_name, precise, read_csv, short, spread
from .table import MARK_TEXTS, MARKS, MINIATURE, by_row, is_wide, notes

STATUS_TEXTS = {
    "reproduced": "trained and measured here, at the paper's scale",
    "released weights": "measured here on published weights",
    "miniature": "trained and measured here on the demo's data; not comparable with the paper's number",
    "stale": "the code behind the training has changed since",
    "missing": "asked for, not measured yet",
    "reported only": "the paper's number; no method of ours stands behind it",
}


def inline(text: str) -> Markup:
    """Escaped text in which `x` and ``x`` are code."""
    pieces = re.split(r"``(.+?)``|`(.+?)`", text)
    shown = [
        escape(piece) if position % 3 == 0 else Markup("<code>{}</code>").format(piece)
        for position, piece in enumerate(pieces)
        if piece is not None
    ]
    return Markup("").join(shown)


def _command(spec: ReportSpec, target: str) -> str:
    return f"{spec.command} {target}"


def _table(spec: ReportSpec, lines: Sequence[Line]) -> dict[str, Any]:
    """What the template needs of one table."""
    others = [name for name in spec.protocols if any(line.get(name) for line in lines)]
    numbering = notes(lines)
    groups = []
    for group, rows in groupby((row for _, row in by_row(lines)), key=lambda row: row[0]["group"]):
        groups.append({"name": group, "rows": [_row(row, numbering) for row in rows]})
    wide = is_wide(lines)
    own = metric_name(lines[0]["metric"], spec.scale) if lines else ""
    return {
        "wide": wide,
        "step_counts": [line["nfe_label"] for line in by_row(lines)[0][1]] if wide else [],
        "groups": groups,
        "metric": own,
        "reported_metric": metric_name(lines[0]["metric"], "paper") if lines else "",
        "extras": {
            name: metric_name(name.removeprefix("reported_"), "paper")
            for name in (lines[0] if lines else {})
            if name.startswith("reported_")
        },
        "others": others,
        "further": {name: metric_name(name, spec.scale) for name in further(lines)},
        "params": any(line["params"] for line in lines),
        "reported": spec.scale == "paper" or any(line["reported"] for line in lines),
        "cost": bool(lines) and "cost" in lines[0],
        "notes": numbering,
        "marks": [
            MARK_TEXTS[mark] for status, mark in MARKS.items() if any(s["status"] == status for s in lines)
        ],
        "protocol": sorted({line["protocol"] for line in lines if line["protocol"]}),
        "images": sorted({line["images"] for line in lines if line["images"]}),
    }


def _row(row: Sequence[Line], numbering: Sequence[str]) -> dict[str, Any]:
    note = numbering.index(row[0]["note"]) + 1 if row[0]["note"] else None
    cells = [
        dict(line)
        | {
            "shown": (spread(line["ours"], line["ours_std"]) or "–")
            + (f" ({line['rank']})" if line.get("rank") else ""),
            "mark": MARKS.get(line["status"], ""),
            "css": line["status"].replace(" ", "-"),
            "hint": _hint(line),
        }
        for line in row
    ]
    return {"label": row[0]["label"], "params": row[0]["params"], "note": note, "cells": cells}


def _hint(line: Line) -> str:
    """The tooltip of a number: what it is, in a line."""
    parts = [line["status"]]
    if line["sampler"]:
        parts.append(
            f"{line['method']}/{line['variant']}, {line['sampler']}, {line['evaluations'] or '?'} evaluations"
        )
    if line["seeds"]:
        parts.append(f"seeds {line['seeds']}")
    if line["difference"]:
        parts.append(
            f"difference {short(line['difference'], signed=True)}, tolerance {short(line['tolerance'])}"
        )
    return "; ".join(parts)


def _claim(line: Line) -> dict[str, Any]:
    return dict(line) | {
        "left_shown": f"{line['left']}: {spread(line['left_mean'], line['left_std']) or '–'}",
        "bound": bound(line),
        "right_shown": right_values(line),
        "ratio": f"{float(line['worst_ratio']):.3f}" if line["worst_ratio"] else "–",
        "surprising": surprising(line),
    }


def _protocol(entry: Any) -> dict[str, str]:
    """The fields of a protocol in words, without those that are not set."""
    raw = entry.model_dump(exclude_none=True)
    return {key: _words(value) for key, value in raw.items()}


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None)
    return str(value)


def render(spec: ReportSpec, parts: Mapping[str, Path]) -> str:
    """The page as HTML text.

    Args:
        spec: What to show, in which order.
        parts: File name -> file: ``NAME.csv`` of tables, ``NAME.png`` of figures, ``claims.csv``.
    """
    items = []
    every: list[Line] = []
    for item in spec.items:
        entry: dict[str, Any] = {
            "item": item,
            "command": _command(spec, item.target),
            "table": None,
            "picture": None,
        }
        name = f"{item.name}.csv" if item.kind == "table" else f"{item.name}.png"
        if name in parts and item.kind == "table":
            lines = read_csv(parts[name])
            every += lines
            entry["table"] = _table(spec, lines)
        elif name in parts:
            entry["picture"] = base64.b64encode(parts[name].read_bytes()).decode()
        items.append(entry)
    claims = [_claim(line) for line in read_csv(parts["claims.csv"])] if "claims.csv" in parts else []
    statuses = Counter(line["status"] for line in every)
    environment = Environment(
        loader=PackageLoader("fewstep"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(short=short, precise=precise, inline=inline)
    return environment.get_template("report.html.j2").render(
        spec=spec,
        version=__version__,
        miniature=spec.scale != "paper",
        warning=MINIATURE,
        items=items,
        claims=claims,
        verdicts=Counter(line["holds"] for line in claims),
        statuses=[(name, statuses[name], STATUS_TEXTS[name]) for name in STATUSES if statuses[name]],
        agreeing=sum(line["agrees"] == "yes" for line in every),
        compared=sum(line["agrees"] != "" for line in every),
        protocols={name: _protocol(entry) for name, entry in spec.protocols.items()},
        methods=[(name, entry, deviations(entry.loss)) for name, entry in spec.methods.items()],
        rerun=_command(spec, "report"),
    )


def main(argv: list[str] | None = None) -> None:
    """Read the spec and the parts, write the page.

    Raises:
        ValueError: two parts have the same file name.
    """
    arguments = parser(__doc__)
    arguments.add_argument(
        "--parts",
        type=Path,
        nargs="*",
        default=[],
        help="CSV files of tables, PNG files of figures, claims.csv",
    )
    options = arguments.parse_args(argv)
    spec = read_spec(ReportSpec, options.spec)
    parts = {path.name: path for path in options.parts}
    if len(parts) != len(options.parts):
        raise ValueError("--parts: two files have the same name; give each table and figure once")
    write_text(options.out, render(spec, parts))


if __name__ == "__main__":
    run(main)
