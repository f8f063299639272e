"""What the configured targets cost: jobs, device time and disk, by rule, before anything is run.

Temporary bytes are those of all jobs together; a disk holds those of the jobs that run at one time.
The small jobs that write specs are not counted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from ..config.costs import Device, Rate, Size
from ..config.settings import Protocol
from .cells import Cells
from .needs import Needs, needs
from .sizes import image_bytes, parameters, reference_bytes, shard_bytes

ADM_IMAGES = 10_000
"""Images in a published reference, as in ADM's."""
STATE = 4
"""Copies of a network in a training's saved state: weights, EMA, and Adam's two moments."""
UNITS: dict[Device, str] = {"gpu": "GPU-hours", "cpu": "CPU-seconds"}
SECONDS: dict[Device, float] = {"gpu": 3600.0, "cpu": 1.0}


@dataclass
class Line:
    """One rule on one kind of device."""

    rule: str
    device: Device = "cpu"
    jobs: int = 0
    seconds: float = 0.0
    kept: float = 0.0
    temporary: float = 0.0
    sources: set[str] = field(default_factory=set)
    unknown: dict[str, None] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """In the unit of the device."""
        return self.seconds / SECONDS[self.device]


class _Tally:
    """Adds work to the lines of one rule; how its time splits over devices follows from the rates."""

    def __init__(self, plan: Cells):
        self.costs = plan.config.costs
        self.lines: dict[tuple[str, Device], Line] = {}

    def line(self, rule: str, device: Device) -> Line:
        return self.lines.setdefault((rule, device), Line(rule, device))

    def jobs(self, rule: str, count: int, *work: tuple[str, Rate | None, float]) -> Line:
        """``count`` jobs that do, together, each (name, rate, amount) of work."""
        rates = [rate for _, rate, _ in work if rate is not None]
        line = self.line(rule, rates[0].device if rates else "cpu")
        line.jobs += count
        if work:
            line.seconds += count * self.costs.start
        for name, rate, amount in work:
            if rate is None:
                line.unknown[f"no rate for {name}"] = None
            else:
                line.seconds += amount / rate.rate
                line.sources.add(rate.source)
        return line


def costs(plan: Cells) -> list[Line]:
    """Lines in the order of the rules; ``seconds`` and bytes count what is declared in config/costs.yaml."""
    found = needs(plan, plan.wanted)
    tally = _Tally(plan)
    _fetch(plan, found, tally)
    _encode(plan, found, tally)
    _models(plan, found, tally)
    _evaluate(plan, found, tally)
    _pages(plan, found, tally)
    return list(tally.lines.values())


def _fetch(plan: Cells, found: Needs, tally: _Tally) -> None:
    line = tally.jobs("fetch", len(found.assets))
    for name in found.assets:
        size = plan.config.costs.assets.get(name)
        files = plan.config.assets[name].files
        if files and all(file.bytes for file in files):
            line.kept += sum(file.bytes or 0 for file in files)
            line.sources.add("published")
        elif isinstance(size, Size):
            line.kept += size.bytes
            line.sources.add(size.source)
        else:
            line.unknown[f"no size of {name}"] = None


def _encode(plan: Cells, found: Needs, tally: _Tally) -> None:
    for name in found.latents:
        entry = plan.parts.latents[name]
        images = plan.parts.datasets[entry.dataset].images
        views = 2 if entry.flip else 1
        rate = plan.config.costs.encode.get(entry.tokenizer)
        line = tally.jobs("encode", entry.shards, (f"encoding by {entry.tokenizer}", rate, images * views))
        line.kept += shard_bytes(entry, plan.parts.tokenizers[entry.tokenizer], images)
        tally.jobs("manifest", 1).kept += 16 * images


def _models(plan: Cells, found: Needs, tally: _Tally) -> None:
    for name, _ in found.models:
        run = plan.runs[name]
        size = 4 * parameters(run.backbone)
        if run.adopted:
            tally.jobs("adopt", 1).kept += size
            continue
        network = run.entry.backbone or run.recipe.backbone
        rate = plan.config.costs.train.get(network, {}).get(run.loss.name)
        images = run.train.steps * run.train.global_batch_size
        line = tally.jobs("train", 1, (f"{run.loss.name} on {network}", rate, images))
        line.kept += size
        line.temporary += STATE * size


def _evaluate(plan: Cells, found: Needs, tally: _Tally) -> None:
    rates = plan.config.costs
    for (name, _, cell, _), protocol_name in found.images.items():
        run, protocol = plan.runs[name], plan.parts.protocols[protocol_name]
        latents = plan.parts.latents[run.recipe.latents]
        dataset = plan.parts.datasets[latents.dataset]
        network = run.entry.backbone or run.recipe.backbone
        sampler, _, steps = cell.rpartition("-")
        both = 1 if plan.parts.samplers[sampler].guidance == "none" else 2
        work = [
            (f"evaluations of {network}", rates.forward.get(network), protocol.images * int(steps) * both)
        ]
        if not run.tokenizer.plain:
            decode = rates.decode.get(latents.tokenizer)
            work.append((f"decoding by {latents.tokenizer}", decode, protocol.images))
        line = tally.jobs("sample", 1, *work)
        line.temporary += image_bytes(protocol.images, dataset.channels, dataset.resolution)
    for protocol_name in found.references:
        protocol = plan.parts.protocols[protocol_name]
        images = _real_images(plan, protocol)
        line = tally.jobs("reference", 1, _extraction(plan, protocol, images))
        size = reference_bytes(protocol, plan.network(protocol.weights), images, _coordinates(plan, protocol))
        if size is None:
            line.unknown[f"no size of {protocol.extractor}'s {protocol.features}"] = None
        line.kept += size or 0
    for key in found.cells:
        protocol = plan.parts.protocols[key.protocol]
        tally.jobs("score", 1, _extraction(plan, protocol, protocol.images))


def _coordinates(plan: Cells, protocol: Protocol) -> int | None:
    """Width of data that are their own features."""
    if not protocol.own_features or protocol.reference_latents is None:
        return None
    return prod(plan.parts.tokenizers[plan.parts.latents[protocol.reference_latents].tokenizer].shape)


def _real_images(plan: Cells, protocol: Protocol) -> int:
    if protocol.reference_latents is None:
        return ADM_IMAGES
    return plan.parts.datasets[plan.parts.latents[protocol.reference_latents].dataset].images


def _extraction(plan: Cells, protocol: Protocol, images: int) -> tuple[str, Rate | None, float]:
    return f"features of {protocol.extractor}", plan.config.costs.score.get(protocol.extractor), images


def _pages(plan: Cells, found: Needs, tally: _Tally) -> None:
    for name in found.targets:
        if name in plan.config.tables:
            name = "table" if plan.config.tables[name].kind == "table" else "figure"
        tally.jobs("report_page" if name == "report" else name, 1)


HEADER = ["rule", "jobs", "time", "unit", "kept_bytes", "temporary_bytes", "source", "note"]


def rows(lines: Iterable[Line]) -> list[dict[str, str]]:
    """Lines and their totals, one for each unit of time, as the columns of the CSV."""
    lines = list(lines)
    totals = [
        _total(group, device) for device in UNITS if (group := [x for x in lines if x.device == device])
    ]
    return [_row(line) for line in [*lines, *totals]]


def _total(lines: list[Line], device: Device) -> Line:
    total = Line("total", device)
    for line in lines:
        total.jobs += line.jobs
        total.seconds += line.seconds
        total.kept += line.kept
        total.temporary += line.temporary
        total.sources |= line.sources
        total.unknown |= line.unknown
    return total


def _row(line: Line) -> dict[str, str]:
    return {
        "rule": line.rule,
        "jobs": str(line.jobs),
        "time": f"{line.time:.4g}" if line.seconds else "",
        "unit": UNITS[line.device] if line.seconds else "",
        "kept_bytes": f"{line.kept:.0f}",
        "temporary_bytes": f"{line.temporary:.0f}",
        "source": "+".join(sorted(line.sources)),
        "note": "; ".join(line.unknown),
    }


def as_csv(lines: Iterable[Line]) -> str:
    """The table as CSV, without its last line feed."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, HEADER, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(lines))
    return stream.getvalue().rstrip("\n")


def as_text(lines: Iterable[Line]) -> str:
    """The table for a terminal."""
    shown = [
        {
            "rule": row["rule"],
            "jobs": row["jobs"],
            "time": f"{row['time']} {row['unit']}".strip() or "-",
            "kept": _size(float(row["kept_bytes"])),
            "temporary": _size(float(row["temporary_bytes"])),
            "source": row["source"],
            "note": row["note"],
        }
        for row in rows(lines)
    ]
    table = [list(shown[0]), *(list(row.values()) for row in shown)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    right = {1, 2, 3, 4}
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if count else "-"
        count /= 1000
    return f"{count:.3g} TB"
