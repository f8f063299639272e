"""Fill a table with measured numbers beside the reported ones, as CSV and Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from .common.cli import metrics_parser, run
from .common.files import write_text
from .common.provenance import is_stale
from .config import read_spec
from .config.specs import TableSpec
from .results import FULL, Line, load_metrics, metric_name, precise, short, spread, table_lines, to_csv

MINIATURE = (
    "Measured on a small data set with a small network and another feature extractor. "
    "Only orderings can be compared with the paper, never the numbers."
)
COST = "Cost of a step"
MARKS = {"stale": "°", "released weights": "‡"}
MARK_TEXTS = {
    "°": "° stale: the code behind this training has changed since; train again to renew the number.",
    "‡": "‡ measured on published weights, not trained here.",
}


def is_wide(lines: Sequence[Line]) -> bool:
    """Whether all rows share the same several NFE, so that the table has one column for each."""
    step_counts = {tuple(line["nfe_label"] for line in row) for _, row in by_row(lines)}
    return len(step_counts) == 1 and len(next(iter(step_counts))) > 1


def by_row(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """The lines of each row, in the order of the table."""
    return [(name, list(row)) for name, row in groupby(lines, key=lambda line: line["row"])]


def ours(line: Line) -> str:
    """Our number for a reader, with mark and rank; a dash when it is missing or was never asked for."""
    if not line["ours"]:
        return "–"
    rank = f" ({line['rank']})" if line.get("rank") else ""
    return spread(line["ours"], line["ours_std"]) + MARKS.get(line["status"], "") + rank


def cost_text(spec: TableSpec, lines: Sequence[Line]) -> str:
    """What the column of costs is relative to."""
    unit = next(line["label"] for line in lines if line["row"] == spec.table.unit)
    return (
        f"{COST}: counted operations of a training step, teacher and all updates included, "
        f"relative to the row “{unit}”."
    )


def notes(lines: Sequence[Line]) -> list[str]:
    """The distinct notes of the rows, in order; a row refers to its note by position."""
    return list(dict.fromkeys(line["note"] for line in lines if line["note"]))


def markdown(spec: TableSpec, lines: Sequence[Line]) -> str:
    """The table in the paper's own form, our numbers beside the reported ones."""
    miniature = spec.scale not in FULL
    parts = [f"# {'In miniature: ' if miniature else ''}{spec.table.title}"]
    if miniature:
        parts.append(f"**In miniature.** {MINIATURE}")
    if spec.table.caption:
        reported = any(line["reported"] for line in lines)
        parts.append(("The paper's table: " if miniature and reported else "") + spec.table.caption)
    metric = metric_name(spec.table.metric, spec.scale)
    if is_wide(lines):
        blocks = (
            [(f"{metric}, ours", ours)] if miniature else [(f"{metric}: ours (reported)", _with_reported)]
        )
        if miniature and any(line["reported"] for line in lines):
            full = metric_name(spec.table.metric, "paper")
            blocks.append((f"{full} reported by the paper, at full scale", _getter("reported")))
        blocks += [(f"{metric}, ours, protocol `{name}`", _getter(name)) for name in _others(spec, lines)]
        for name, protocol in spec.further.items():
            heading = f"{metric_name(name, spec.scale)}, ours, protocol `{protocol}`"
            blocks.append((heading, _getter(f"ours_{name}", precise)))
        for heading, value in blocks:
            parts += [f"**{heading}**", _wide(lines, value)]
    else:
        parts.append(_long(spec, lines))
    for position, note in enumerate(notes(lines), start=1):
        parts.append(f"[{position}] {note}")
    if lines and "cost" in lines[0]:
        parts.append(cost_text(spec, lines))
    if lines and "rank" in lines[0]:
        parts.append("In brackets: the rank in its column; rows are in the order of the first.")
    used = {MARKS[line["status"]] for line in lines if line["status"] in MARKS}
    parts += [MARK_TEXTS[mark] for mark in sorted(used)]
    parts.append(_footer(spec, lines))
    return "\n\n".join(parts) + "\n"


def _with_reported(line: Line) -> str:
    reported = f" ({short(line['reported'])})" if line["reported"] else ""
    return ours(line) + reported


def _getter(column: str, shown: Callable[[str], str] = short) -> Callable[[Line], str]:
    return lambda line: shown(line[column]) or "–"


def _others(spec: TableSpec, lines: Sequence[Line]) -> list[str]:
    return [name for name in spec.protocols[1:] if any(line[name] for line in lines)]


def _wide(lines: Sequence[Line], value: Callable[[Line], str]) -> str:
    rows = by_row(lines)
    head = ["Method", *(f"NFE = {line['nfe_label']}" for line in rows[0][1])]
    body = [[_label(lines, row[0]), *map(value, row)] for _, row in rows]
    if value is ours and "cost" in lines[0]:
        head.append(COST)
        for cells, (_, row) in zip(body, rows, strict=True):
            cells.append(short(row[0]["cost"]) or "–")
    return _grid(head, body, [row[0]["group"] for _, row in rows])


def _long(spec: TableSpec, lines: Sequence[Line]) -> str:
    metric, full = (metric_name(spec.table.metric, scale) for scale in (spec.scale, "paper"))
    paper = spec.scale in FULL
    extras = [name for name in lines[0] if name.startswith("reported_")] if lines else []
    others = _others(spec, lines)
    params = any(line["params"] for line in lines)
    head = ["Method", *(["#Params, reported"] if params else []), "NFE"]
    head += [f"{metric_name(name.removeprefix('reported_'), 'paper')}, reported" for name in extras]
    head += [f"{full}, reported" + ("" if paper else " at full scale"), f"{metric}, ours"]
    head += [
        *(f"{metric}, `{name}`" for name in others),
        *(f"{metric_name(name, spec.scale)}, `{protocol}`" for name, protocol in spec.further.items()),
        *(["Difference", "Tolerance"] if paper else []),
        "Status",
    ]
    body, groups = [], []
    for _, row in by_row(lines):
        for position, line in enumerate(row):
            cells = [_label(lines, line) if position == 0 else ""]
            cells += [line["params"] if position == 0 else ""] if params else []
            cells += [line["nfe_label"], *(line[name] or "–" for name in extras)]
            cells += [
                short(line["reported"]) or "–",
                ours(line),
                *(short(line[name]) or "–" for name in others),
                *(precise(line[f"ours_{name}"]) or "–" for name in spec.further),
            ]
            cells += [short(line["difference"], signed=True), short(line["tolerance"])] if paper else []
            body.append([*cells, line["status"]])
            groups.append(line["group"])
    return _grid(head, body, groups)


def _label(lines: Sequence[Line], line: Line) -> str:
    return line["label"] + (f" [{notes(lines).index(line['note']) + 1}]" if line["note"] else "")


def _grid(head: list[str], body: list[list[str]], groups: list[str]) -> str:
    texts = [head, ["---", *["---:"] * (len(head) - 1)]]
    shown = ""
    for cells, group in zip(body, groups, strict=True):
        if group and group != shown:
            texts.append([f"**{group}**", *[""] * (len(head) - 1)])
        shown = group
        texts.append(cells)
    return "\n".join("| " + " | ".join(map(_cell, cells)) + " |" for cells in texts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _footer(spec: TableSpec, lines: Sequence[Line]) -> str:
    images = sorted({line["images"] for line in lines if line["images"]})
    seeds = sorted({line["seeds"] for line in lines if line["seeds"]})
    counted = f", {' / '.join(images)} images" if images else ""
    return (
        f"Source: {spec.table.paper}. Scale: {spec.scale}. "
        f"Protocol: {spec.protocols[0] if spec.protocols else 'none'}{counted}; "
        f"seeds measured/asked: {', '.join(seeds) or 'none'}."
    )


def main(argv: list[str] | None = None) -> None:
    """Read spec and metrics, write CSV (``--out``) and Markdown."""
    options = metrics_parser(__doc__).parse_args(argv)
    spec = read_spec(TableSpec, options.spec)
    metrics = load_metrics(options.metrics)
    asked = {key for row in spec.rows for columns in row.cells.values() for keys in columns for key in keys}
    for key in metrics.keys() - asked:
        print(f"note: {spec.name} does not ask for {key}; left out", file=sys.stderr)
    lines = table_lines(spec, metrics, is_stale)
    if options.markdown:
        write_text(options.markdown, markdown(spec, lines))
    write_text(options.out, to_csv(lines))


if __name__ == "__main__":
    run(main)
