"""The HTML page: tables, figures and claims in one file that loads nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from .. import __version__
from ..common.device_time import DeviceTime, read_time
from ..common.files import reading
from ..config.specs import HyperParameter, ReportItem, ReportSpec
from ..config.text import AnyProtocol
from .claim_checks import read_claims
from .figures.overview import draw_overview
from .formatting import format_number
from .markdown import MINIATURE, MISSING, ours_text, sign_texts
from .metrics import metric_name
from .origin import describe_origin
from .rows import OWN, TableRow, is_miniature, read_table

OF_ROWS = ("table", "curve", "ranking", "price", "sweep")
"""Kinds whose numbers are the rows of a table; a figure's stand below it."""
OF_METRICS = ("kid", "mmd")
"""Fields of a protocol that are the settings of a metric of the same name."""
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


def render_page(
    spec: ReportSpec,
    parts: Mapping[str, Path],
    deviations: Callable[[str], list[str]],
    folder: Path,
    curves: Sequence[Path] = (),
) -> str:
    """The page as HTML text.

    Args:
        spec: What to show, in which order.
        parts: File name -> file: ``NAME.csv`` of tables, ``NAME.png`` of figures, ``claims.csv``.
        deviations: Name of a loss -> where it deviates from its paper, an item each.
        folder: Where the page will be. Links lead from there, to files that exist.
        curves: Of the trainings in the spec, train.jsonl.

    Raises:
        ValueError: a part is damaged.
    """
    tables, pictures = {}, {}
    for item in spec.items:
        if item.kind in OF_ROWS and f"{item.name}.csv" in parts:
            tables[item.name] = read_table(parts[f"{item.name}.csv"])
        if item.kind != "table" and f"{item.name}.png" in parts:
            pictures[item.name] = _picture(parts[f"{item.name}.png"])
    shown = [tables[item.name] for item in spec.items if item.kind == "table" and item.name in tables]
    rows = [row for table in shown for row in table.rows]
    claims = read_claims(parts["claims.csv"]) if "claims.csv" in parts else []
    given = {path.resolve() for path in curves}
    drawn = {}
    for name, method in spec.methods.items():
        logged = {
            training.name: folder / training.result
            for training in method.trainings
            if (folder / training.result).resolve() in given
        }
        if logged:
            drawn[name] = base64.b64encode(draw_overview(logged)).decode()
    times = {path: time for path in spec.times if (time := read_time(folder / path)) is not None}
    parts_of_trainings = [part for time in times.values() for part in time.parts]

    def is_there(path: str) -> bool:
        return (folder / path).is_file()

    def behind(item: ReportItem, row: TableRow) -> list[str]:
        """Names of what is behind a row's numbers."""
        columns = item.cells.get(row.row, item.cells.get("", []))
        steps = [each.steps for each in tables[item.name].rows if each.row == row.row]
        return dict(zip(steps, columns, strict=False)).get(row.steps, [])

    def linked(text: str, item: ReportItem, row: TableRow, protocol: str = "") -> Markup:
        """A number as a link to its metrics file, where that is here; without a protocol, to the first."""
        names = behind(item, row)
        files = [spec.sources[name].result for name in names if not protocol or name.endswith(f"/{protocol}")]
        if not files or text == MISSING or not is_there(files[0]):
            return escape(text)
        return Markup('<a href="{}">{}</a>').format(quote(files[0]), text)

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
    environment.filters |= {"linked_papers": linked_papers, "by_key": by_key}
    environment.filters |= {"fields": protocol_fields, "training_time": training_time, "hours": hours_text}
    return environment.get_template("report.html.j2").render(
        spec=spec,
        version=__version__,
        miniature=is_miniature(spec.scale),
        own=spec.scale == OWN,
        warning=MINIATURE,
        missing=MISSING,
        tables=tables,
        pictures=pictures,
        claims=claims,
        verdicts=Counter(claim.holds for claim in claims),
        statuses=[(name, statuses[name], text) for name, text in STATUS_TEXTS.items() if statuses[name]],
        agreeing=sum(row.agrees == "yes" for row in rows),
        compared=sum(row.agrees != "" for row in rows),
        deviations=deviations,
        is_there=is_there,
        behind=behind,
        linked=linked,
        curves=drawn,
        times=times,
        total_hours={
            unit: sum(part.hours for part in parts_of_trainings if part.unit == unit)
            for unit in dict.fromkeys(part.unit for part in parts_of_trainings)
        },
        devices=sorted({part.device for part in parts_of_trainings}),
        origin=describe_origin(),
    )


def _picture(path: Path) -> str:
    """A PNG file as base64, after a look at the checksums of its parts."""
    with reading(path, "a whole picture, make it again"):
        content = path.read_bytes()
        Image.open(io.BytesIO(content), formats=["PNG"]).verify()
    return base64.b64encode(content).decode()


def linked_papers(text: str) -> Markup:
    """Escaped text in which numbers of arXiv are links, as in `arXiv:2602.10764` and `arXiv 2602.10764`."""
    pattern = r"(arXiv[: ])(\d{4}\.\d{4,5})"
    return Markup(re.sub(pattern, r'<a href="https://arxiv.org/abs/\2">\1\2</a>', str(inline(text))))


def duration(seconds: float) -> str:
    """As `40 s`, `12 min` or `31.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def hours_text(hours: float) -> str:
    """Two digits of a small number, whole hours of a large one."""
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def training_time(time: DeviceTime) -> str:
    """As `trained for 5 min on 8 NVIDIA H100: 0.67 GPU-hours, 41.2 GB of memory`."""
    places = [
        f"{part.count} {part.device if part.gpu else 'core' + 's' * (part.count > 1)}" for part in time.parts
    ]
    where = " and ".join(dict.fromkeys(places))
    resumed = f" in {len(time.parts)} parts, lost steps included," if len(time.parts) > 1 else ""
    units = dict.fromkeys(part.unit for part in time.parts)
    spent = ", ".join(f"{hours_text(time.hours(unit))} {unit}" for unit in units)
    ended = "" if time.finished else "not to its end, "
    memory = f", {time.memory:.1f} GB of memory" if time.memory else ""
    return f"{ended}trained for {duration(time.seconds)}{resumed} on {where}: {spent}{memory}"


def by_key(parameters: Mapping[str, Sequence[HyperParameter]]) -> dict[str, dict[str, HyperParameter]]:
    """Hyper-parameters by key and then by scale, in the order in which the keys first stand."""
    keys = dict.fromkeys(entry.key for entries in parameters.values() for entry in entries)
    found: dict[str, dict[str, HyperParameter]] = {key: {} for key in keys}
    for scale, entries in parameters.items():
        for entry in entries:
            found[entry.key][scale] = entry
    return found


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


def protocol_fields(protocol: AnyProtocol) -> list[tuple[str, Any]]:
    """What a reader must know of a protocol: its fields, without the settings of metrics that it has not."""
    found = protocol.model_dump(exclude_none=True)
    found |= {"network_dtype": protocol.network_dtype, "decoder_dtype": protocol.decoder_dtype}
    return [(key, value) for key, value in found.items() if key not in OF_METRICS or key in protocol.metrics]


def in_words(value: Any) -> str:
    """A field of a protocol, without what is not set in it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {in_words(inner)}" for key, inner in value.items() if inner is not None)
    return ", ".join(map(in_words, value)) if isinstance(value, list) else str(value)
