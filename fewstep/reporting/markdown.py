"""Tables and claims as Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from ..config.specs import ClaimsSpec, TableSpec
from .claim_checks import CheckedClaim
from .formatting import format_mean, format_number
from .metrics import REPORTED, metric_name
from .rows import FULL_SCALES, OWN, FilledTable, TableRow, is_miniature

MINIATURE = (
    "Measured on a small data set with a small network and another feature extractor. "
    "Only orderings can be compared with the paper, never the numbers."
)
COST = "Cost of a step"
STATUS_SIGNS = {"stale": "°", "released weights": "‡", "another scorer": "§"}
WARNING_SIGN = "¶"
SIGN_TEXTS = {
    "stale": "° stale: the code of its training or score has changed since; run that again for a new number.",
    "released weights": "‡ measured on published weights, not trained here.",
    "another scorer": "§ by another scorer than the published numbers, and not comparable with them.",
}


_SPECIAL = re.compile(
    r"``[^`|\\]+``|`[^`|\\]+`"  # code, which stays
    r"|[\\`*\[\]]|(?<![^\W_])_|_(?![^\W_])|~(?=~)"  # emphasis, links
    r"|<|&(?=#?\w+;)"  # HTML
    r"|^(?:[#>+-]|\d+[.)])"  # headings, quotations, lists
)


def escaped(text: str) -> str:
    """Text of a configuration in one line of Markdown, in which nothing has an effect but `code`."""

    def safe(found: re.Match[str]) -> str:
        special = found[0]
        if special in "<&":
            return "&lt;" if special == "<" else "&amp;"
        is_code = special[0] == "`" and len(special) > 1
        return special if is_code else f"{special[:-1]}\\{special[-1]}"

    return _SPECIAL.sub(safe, " ".join(text.split()))


MISSING = "–"
"""Stands where there is no number."""


def ours_text(row: TableRow) -> str:
    """Our number, with the signs of its status and warnings, and its rank; a dash where there is none."""
    if row.ours is None:
        return MISSING
    rank = f" ({row.rank})" if row.rank is not None else ""
    signs = STATUS_SIGNS.get(row.status, "") + (WARNING_SIGN if row.warnings else "")
    return format_mean(row.ours, row.ours_std, row.metric) + signs + rank


def sign_texts(table: FilledTable) -> list[str]:
    """What the signs mean that are used in a table."""
    texts = [text for status, text in SIGN_TEXTS.items() if any(row.status == status for row in table.rows)]
    return texts + [f"{WARNING_SIGN} {text}" for text in warning_texts(table)]


def warning_texts(table: FilledTable) -> list[str]:
    """The warnings of all rows, each with the labels of its methods."""
    labels: dict[str, dict[str, None]] = {}
    for row in table.rows:
        if row.warnings:
            labels.setdefault(row.warnings, {})[row.label] = None
    return [f"{', '.join(found)}: {warnings}." for warnings, found in labels.items()]


def table_markdown(spec: TableSpec, table: FilledTable) -> str:
    """The table in the paper's own form, our numbers beside the reported ones."""
    miniature = is_miniature(spec.scale)
    parts = [f"# {'In miniature: ' if miniature else ''}{escaped(spec.table.title)}"]
    if miniature:
        parts.append(f"**In miniature.** {MINIATURE}")
    if spec.table.caption:
        prefix = "The paper's table: " if miniature and table.has_reported else ""
        parts.append(prefix + escaped(spec.table.caption))
    parts += _wide(spec, table) if table.step_labels else [_long(spec, table)]
    parts += [f"[{position}] {escaped(note)}" for position, note in enumerate(table.notes, start=1)]
    if "cost" in table.columns:
        unit = escaped(next(row.label for row in table.rows if row.row == spec.table.unit))
        parts.append(
            f"{COST}: counted operations of a training step, teacher and all updates included, "
            f"relative to the row “{unit}”."
        )
    if "rank" in table.columns:
        parts.append("In brackets: the rank in its column; rows are in the order of the first.")
    parts += map(escaped, sign_texts(table))
    images = table.distinct("images")
    counted = f", {' / '.join(images)} images" if images else ""
    source = f"Source: {escaped(spec.table.paper)}. " if spec.table.paper else ""
    parts.append(
        f"{source}Scale: {spec.scale}. "
        f"Protocol: {spec.protocols[0] if spec.protocols else 'none'}{counted}; "
        f"seeds measured/asked: {', '.join(table.distinct('seeds')) or 'none'}."
    )
    return "\n\n".join(parts) + "\n"


CellText = Callable[[TableRow], str]
Column = tuple[str, CellText]
"""Heading, and the text of a row."""


def _number(column: str, metric: str = "", significant: int | None = None, exact: bool = False) -> CellText:
    def text(row: TableRow) -> str:
        value = row[column]
        assert value is None or isinstance(value, float)
        return format_number(value, metric, significant=significant, exact=exact) or MISSING

    return text


def _metric(metric: str, scale: str) -> str:
    return escaped(metric_name(metric, scale))


def _other_numbers(spec: TableSpec, table: FilledTable, between: str) -> list[Column]:
    """Ours under the other protocols, then the other metrics; headings are metric, ``between``, protocol."""
    metric = _metric(spec.table.metric, spec.scale)
    own = spec.table.metric
    return [(f"{metric}{between}`{name}`", _number(name, own)) for name in table.other_protocols] + [
        (
            f"{_metric(name, spec.scale)}{between}`{protocol}`",
            _number(f"ours_{name}", name, significant=3),
        )
        for name, protocol in spec.extra_metrics.items()
    ]


def _with_reported(row: TableRow) -> str:
    reported = "" if row.reported is None else f" ({format_number(row.reported, row.metric)})"
    return ours_text(row) + reported


def _wide(spec: TableSpec, table: FilledTable) -> list[str]:
    """Tables with a column for each number of steps, one below the other, each with its heading."""
    metric, full = (_metric(spec.table.metric, scale) for scale in (spec.scale, REPORTED))
    if spec.scale in FULL_SCALES:
        blocks: list[Column] = [(f"{metric}: ours (reported)", _with_reported)]
    else:
        blocks = [(metric if spec.scale == OWN else f"{metric}, ours", ours_text)]
        if table.has_reported:
            blocks.append(
                (f"{full} reported by the paper, at full scale", _number("reported", spec.table.metric))
            )
    blocks += _other_numbers(spec, table, ", " if spec.scale == OWN else ", ours, protocol ")
    methods = table.by_method()
    parts = []
    for heading, text in blocks:
        costs = [(COST, _number("cost"))] if text is ours_text and "cost" in table.columns else []
        head = [
            "Method",
            *(f"NFE = {escaped(label)}" for label in table.step_labels),
            *(name for name, _ in costs),
        ]
        body = [
            [
                _label(table, rows[0]),
                *(MISSING if row is None else text(row) for row in table.in_columns(rows)),
                *(cost(rows[0]) for _, cost in costs),
            ]
            for rows in methods
        ]
        parts += [f"**{heading}**", _grouped(head, body, [rows[0].group for rows in methods])]
    return parts


def _long(spec: TableSpec, table: FilledTable) -> str:
    """One line for each number."""
    metric, full = (_metric(spec.table.metric, scale) for scale in (spec.scale, REPORTED))
    paper, own = spec.scale in FULL_SCALES, spec.scale == OWN
    of_method: list[Column] = [("Method", lambda row: _label(table, row))]
    if table.distinct("params"):
        of_method.append(("#Params, reported", lambda row: escaped(row.params)))
    columns: list[Column] = [("NFE", lambda row: escaped(row.nfe_label))]
    columns += [
        (f"{_metric(name, REPORTED)}, reported", _number(f"reported_{name}", exact=True))
        for name in table.reported_metrics
    ]
    if not own:
        columns.append(
            (
                f"{full}, reported" + ("" if paper else " at full scale"),
                _number("reported", spec.table.metric),
            )
        )
    columns.append((metric if own else f"{metric}, ours", ours_text))
    columns += _other_numbers(spec, table, ", ")
    if paper:
        columns.append(("Difference", lambda row: format_number(row.difference, row.metric, signed=True)))
        columns.append(("Tolerance", lambda row: format_number(row.tolerance, row.metric)))
    columns.append(("Status", lambda row: row.status))
    body = [
        [text(row) if row is rows[0] else "" for _, text in of_method] + [text(row) for _, text in columns]
        for rows in table.by_method()
        for row in rows
    ]
    return _grouped([name for name, _ in of_method + columns], body, [row.group for row in table.rows])


def _label(table: FilledTable, row: TableRow) -> str:
    return escaped(row.label) + (f" [{table.notes.index(row.note) + 1}]" if row.note else "")


def _grouped(head: list[str], body: list[list[str]], groups: list[str]) -> str:
    """A table with a line before each group of rows that has a name."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for cells, group, before in zip(body, groups, ["", *groups], strict=False):
        if group and group != before:
            lines.append([f"**{escaped(group)}**", *[""] * (len(head) - 1)])
        lines.append(cells)
    return _pipes(lines)


def _pipes(lines: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in cells] for cells in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def claims_markdown(spec: ClaimsSpec, claims: Sequence[CheckedClaim]) -> str:
    """The claims, holding or not."""
    count = Counter(claim.holds for claim in claims)
    parts = ["# Claims of the paper"]
    if is_miniature(spec.scale):
        parts.append(
            "**Miniature: a claim that fails here is neither proved nor refuted at the paper's scale; "
            "“known” says what earlier miniature runs showed.**"
        )
    parts.append(f"{count['yes']} hold, {count['no']} do not; numbers are missing for {count['missing']}.")
    head = ["Claim", "Source", "Left", "", "Right", "Worst ratio", "Seeds", "Holds"]
    lines = [
        [
            escaped(claim.statement) + (f" *{escaped(claim.note)}*" if claim.note else ""),
            escaped(claim.source),
            escaped(claim.left_text),
            claim.bound,
            escaped("; ".join(claim.right_texts)),
            claim.ratio_text,
            claim.seeds,
            f"**{claim.holds}**" + (f" (known: {claim.expected})" if claim.surprising else ""),
        ]
        for claim in claims
    ]
    parts.append(_pipes([head, ["---"] * 5 + ["---:"] * 2 + ["---"], *lines]))
    protocols = ", ".join(dict.fromkeys(cells[0][0].protocol for cells in spec.cells.values()))
    parts.append(f"Protocol: {protocols}. Scale: {spec.scale}. Seeds: {', '.join(map(str, spec.seeds))}.")
    return "\n\n".join(parts) + "\n"
