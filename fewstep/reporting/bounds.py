"""The rows of a table of bounds: the scores of real scenes, and what a scorer can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..config.base import read_sealed
from ..config.specs import TableSpec
from .formatting import format_number, rounded
from .metrics import is_measured, metric_name, value_of
from .rows import FilledTable, TableRow, columns_of, is_miniature

SCENES = {
    "real": "Real scenes, their own captions",
    "reconstructed": "Real scenes through the tokenizer, their own captions",
    "others": "Real scenes, captions of others",
}
"""Set of metrics in a file of bounds -> what a reader calls it."""
ABOVE = "Share of real scenes that score higher with their own caption than with one that is wrong in"
SWAPPED = {
    "single_object": "its object",
    "two_object": "one of its two objects",
    "counting": "its number",
    "colors": "its color",
    "position": "its relation",
    "color_attr": "which object has which color",
}
"""Kind of prompt -> what is swapped in it."""


def bounds_table(spec: TableSpec, path: Path, code: str) -> FilledTable:
    """A table of bounds.

    Args:
        path: file that fewstep.bounds made.
        code: digest of the present code; a file of another one is stale.

    Raises:
        ValueError: the file is unreadable, or lacks a metric.
    """
    content = read_sealed(path, "bounds, which fewstep.bounds makes")
    for key in ("metrics", "above_swapped"):
        if not isinstance(content.get(key), dict):
            raise ValueError(f"{path}: {key}: is missing; make the file with fewstep.bounds")
    stale = content.get("code") != code
    status = "stale" if stale else "miniature" if is_miniature(spec.scale) else "reproduced"
    refused = [f"no {name}: {reason}" for name, reason in content.get("refused", {}).items()]
    scores = {
        key: {
            metric: value_of({"cell": f"{path}: metrics.{key}", **content["metrics"].get(key, {})}, metric)
            for metric in (spec.table.metric, *spec.table.metrics)
            if is_measured(content, metric)
        }
        for key in SCENES
    }
    above: Mapping[str, Mapping[str, float]] = content["above_swapped"]
    # A share belongs to a scorer, and stands in the column of all its prompts.
    shares = {
        tag: {name: by_tag[tag] for name, by_tag in above.items() if tag in by_tag}
        for tag in SWAPPED
        if any(tag in by_tag for by_tag in above.values())
    }

    def row(name: str, group: str, label: str, values: Mapping[str, float], warnings: list[str]) -> TableRow:
        return TableRow(
            table=spec.name,
            row=name,
            group=group,
            label=label,
            params="",
            steps=0,
            nfe_label="–",
            sampler="",
            method="",
            variant="",
            metric=spec.table.metric,
            reported=None,
            ours=rounded(values.get(spec.table.metric)),
            ours_std=None,
            seeds="",
            images=str(content.get("images", "")),
            evaluations="",
            more={f"ours_{metric}": rounded(values.get(metric)) for metric in spec.extra_metrics},
            status=status,
            difference=None,
            tolerance=None,
            agrees="",
            protocol=spec.protocols[0],
            note="",
            warnings="; ".join([*warnings, *refused]),
        )

    rows = [
        row(key, "Bounds of the scores", label, scores[key], _warnings(spec, key, scores))
        for key, label in SCENES.items()
    ]
    rows += [row(f"swapped_{tag}", ABOVE, SWAPPED[tag], values, []) for tag, values in shares.items()]
    return FilledTable(columns_of(spec), rows)


def _warnings(spec: TableSpec, key: str, scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Where the scores of a row are not what bounds must be."""
    bounds = spec.table.bounds
    assert bounds is not None
    metric, values = spec.table.metric, scores[key]

    def told(name: str, fault: str, limit: float) -> str:
        own, other = (format_number(value, name) for value in (values[name], limit))
        return f"{metric_name(name, spec.scale)} is {own}, {fault} {other}"

    found = []
    if key == "real" and metric in values and values[metric] < bounds.real:
        found.append(told(metric, "below", bounds.real))
    if key == "others" and metric in values and values[metric] > bounds.others:
        found.append(told(metric, "above", bounds.others))
    if key == "reconstructed":
        for name, value in values.items():
            if value > scores["real"][name]:
                found.append(told(name, "above that of real scenes,", scores["real"][name]))
            if value < scores["others"][name]:
                found.append(told(name, "below that with captions of others,", scores["others"][name]))
    return found
