"""Metrics files, and the metrics of a cell over its seeds.

A metrics file says itself which cell it belongs to; its path is never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ..config.base import parse, read_sealed
from ..config.specs import CellKey
from ..config.text import PROMPT_METRICS, split_metric

Entry = Mapping[str, Any]
"""The content of a metrics file."""
Metrics = Mapping[CellKey, Entry]


def load_metrics(paths: Iterable[str | Path]) -> dict[CellKey, dict[str, Any]]:
    """Read metrics files, keyed by the cell that each says it measures.

    Raises:
        ValueError: a file is unreadable or names no cell, or two files measure the same cell.
    """
    found: dict[CellKey, dict[str, Any]] = {}
    origin: dict[CellKey, str | Path] = {}
    for path in paths:
        raw = read_sealed(path, "metrics, which fewstep.score makes")
        if "cell" not in raw:
            raise ValueError(f"{path}: no key `cell`; make the file with fewstep.score")
        cell = parse(CellKey, raw["cell"], str(path), "cell")
        if cell in found:
            raise ValueError(f"{path}: measures the same cell as {origin[cell]}: {cell}; remove one")
        found[cell], origin[cell] = raw, path
    return found


@dataclass(frozen=True)
class CellMetric:
    """One metric of one cell over the seeds that were measured, perhaps none."""

    values: list[float]
    """Fewer than entries where scorers were refused."""
    entries: list[Entry]

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def common(self, key: str) -> str:
        """What the metrics files of all seeds say, with slashes where they differ."""
        return "/".join(sorted({str(entry.get(key, "")) for entry in self.entries}))

    @property
    def flops_per_step(self) -> float | None:
        """Operations of a training step, the mean over seeds; None where a training did not count them."""
        found = [entry.get("model", {}).get("flops_per_step") for entry in self.entries]
        return mean(found) if found and all(found) else None


def gather(metrics: Metrics, keys: Sequence[CellKey], metric: str) -> CellMetric:
    """A metric over the seeds that are there; errors as for :func:`value_of`."""
    entries = [metrics[key] for key in keys if key in metrics]
    return CellMetric([value_of(entry, metric) for entry in entries if is_measured(entry, metric)], entries)


def is_measured(entry: Entry, metric: str) -> bool:
    """Whether the scorer of a metric passed its self-test; of other metrics always."""
    return _scorer(metric) not in entry.get("refused", {})


def differs(entry: Entry, metric: str) -> bool:
    """Whether the metric's scorer is another one than that of published numbers, as its card says."""
    return "differs" in entry.get("scorers", {}).get(_scorer(metric), {})


def _scorer(metric: str) -> str:
    return split_metric(metric)[0] if metric in PROMPT_METRICS else metric


def value_of(entry: Entry, metric: str) -> float:
    """The metric of one metrics file.

    Raises:
        ValueError: the file lacks it, or it is not finite.
    """
    value = entry.get(metric)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"metrics of {entry['cell']}: {metric} is {value!r}, not a finite number")
    return float(value)


def warnings_of(entry: Entry) -> list[str]:
    """What a reader must know of the numbers of a metrics file."""
    found = []
    if skipped := entry.get("model", {}).get("skipped_updates"):
        found.append(f"{skipped} updates of the training were not finite and were skipped")
    model = entry.get("model", {})
    if (made_for := model.get("made_for")) and model["steps"] not in made_for:
        found.append(f"sampled in {model['steps']} steps, made for {', '.join(map(str, made_for))}")
    images, dimensions = entry.get("images", 0), entry.get("dimensions", 0)
    found += [f"no {name}: {reason}" for name, reason in entry.get("refused", {}).items()]
    if {"fid", "fdd", "frechet"} & entry.keys() and images <= dimensions:
        found.append(f"Fréchet distance of {images} images in {dimensions} dimensions, which is biased")
    return found


REPORTED = "reported"
"""In the place of a scale: the number is a paper's own."""


def metric_name(metric: str, scale: str) -> str:
    """What a reader calls a metric of a scale, or one that is REPORTED.

    A Fréchet distance is an FID only on the paper's data and features. Scores by another network than the
    published ones say by which.
    """
    full = scale in ("paper", REPORTED)
    names = {
        "fid": "FID" if full else "Fréchet distance",
        "fdd": "FDD",
        "frechet": "Fréchet distance",
        "is": "Inception score",
        "mmd": "MMD²",
        "moon_distance": "Distance to the moons (σ of the noise)",
        "off_moons": "Share off the moons",
        "bpd": "Bits per dimension",
        "kid": "KID" if full else "Kernel distance",
        "grad_norm": "Gradient norm",
        "geneval": "GenEval (HF detector)" if scale == "paper" else "GenEval",
        "clip": "CLIP score",
        "blip": "BLIP score",
        "image_reward": "ImageReward",
        "dpg": "DPG-Bench" if scale == REPORTED else "DPG-Bench (Qwen3-VL)",
        "geneval2": "GenEval 2",
        "pickscore": "PickScore",
        "hps": "HPSv2.1",
    }
    parts = {
        "single_object": "one object",
        "two_object": "two objects",
        "color_attr": "two colors",
        "seen": "captions of the training",
        "held_out": "captions held out",
        "atoms": "mean over questions",
    }
    if metric in PROMPT_METRICS:
        name, part = split_metric(metric)
        return f"{names[name]}: {parts.get(part, part)}" if part else names[name]
    return names.get(metric, metric.replace("_", " ").capitalize())
