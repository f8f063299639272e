"""Which files a job reads, and which jobs lead to some files: the DAG, from the targets up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.base import ConfigError
from ..config.settings import Weights
from . import paths
from .cells import PICTURES

if TYPE_CHECKING:
    from . import Plan

Files = dict[str, list[str]]


@dataclass(frozen=True)
class Job:
    stage: str
    key: dict[str, str]
    """The wildcards of its output."""


def dependencies(plan: Plan, files: Iterable[str]) -> list[Job]:
    """Every job behind some files, each once; the small ones that write specs are left out."""
    found: dict[tuple[object, ...], Job] = {}
    seen: set[str] = set()
    queue = list(files)
    for file in queue:
        if file in seen:
            continue
        seen.add(file)
        job = maker(plan, file)
        name = (job.stage, *sorted(job.key.items()))
        if name not in found:
            found[name] = job
            queue += [each for group in inputs(plan, job.stage, job.key).values() for each in group]
    return list(found.values())


def maker(plan: Plan, file: str) -> Job:
    """The job that makes a file.

    Raises:
        ConfigError: no rule makes it.
    """
    for kind, pattern in plan.patterns.items():
        match = pattern.fullmatch(file)
        if match is None:
            continue
        key, stage = match.groupdict(), paths.MAKERS[kind]
        if stage == "train" and plan.runs[key["run"]].adopted:
            stage = "adopt"
        if kind == "csv" and plan.tables[key["table"]].table.kind != "table":
            stage = "figure"
        return Job(stage, key)
    raise ConfigError(f"workflow: no rule makes {file}")


def weights(plan: Plan, given: Weights | None) -> list[str]:
    """The file that leads to some weights: a model of ours, or an asset's record."""
    if given is None:
        return []
    if given.method is not None:
        return [plan.model(given.method)]
    return [plan.file("record", asset=given.asset)]


def _encode(plan: Plan, latents: str, **_: str) -> Files:
    entry = plan.parts.latents[latents]
    return {
        "source": [plan.file("record", asset=plan.parts.datasets[entry.dataset].asset)],
        "tokenizer": weights(plan, plan.parts.tokenizers[entry.tokenizer].weights),
    }


def _manifest(plan: Plan, latents: str) -> Files:
    count = plan.parts.latents[latents].shards
    shards = [plan.file("shard", latents=latents, shard=f"{shard:05d}") for shard in range(count)]
    return {**_encode(plan, latents), "shards": shards}


def _adopt(plan: Plan, run: str, **_: str) -> Files:
    published = plan.runs[run].published
    return {"asset": [plan.file("record", asset=published.asset)] if published else []}


def _train(plan: Plan, run: str, **_: str) -> Files:
    teacher = plan.runs[run].teacher
    return {
        "latents": [plan.file("manifest", latents=plan.runs[run].recipe.latents)],
        "teacher": [plan.model(teacher)] if teacher else [],
    }


def _sample(plan: Plan, run: str, seed: str, **_: str) -> Files:
    entry = plan.runs[run]
    # Elsewhere the tokenizer's own files say how its latents are normalised.
    manifest = [plan.file("manifest", latents=entry.recipe.latents)] if entry.tokenizer.measured else []
    return {
        "model": [plan.file("model", run=run, seed=seed)],
        "latents": manifest,
        "tokenizer": weights(plan, entry.tokenizer.weights),
    }


def _reference(plan: Plan, protocol: str) -> Files:
    entry = plan.parts.protocols[protocol]
    latents = entry.reference_latents
    return {
        "latents": [plan.file("manifest", latents=latents)] if latents else [],
        "published": weights(plan, entry.reference),
        "extractor": weights(plan, entry.weights),
    }


def reference(plan: Plan, protocol: str) -> list[str]:
    """Reference statistics: computed here, or the record of a published file."""
    entry = plan.parts.protocols[protocol]
    return weights(plan, entry.reference) if entry.stored else [plan.file("statistics", protocol=protocol)]


def _score(plan: Plan, protocol: str, **cell: str) -> Files:
    return {
        "images": [plan.file("images", images=plan.image_set(protocol), **cell)],
        "extractor": weights(plan, plan.parts.protocols[protocol].weights),
        "reference": reference(plan, protocol),
    }


def _table(plan: Plan, table: str) -> Files:
    entry = plan.tables[table]
    shown = entry.table.kind in (*PICTURES, "training")
    return {"metrics": [] if shown else [plan.metrics(key) for key in entry.all_cells]}


def _figure(plan: Plan, table: str) -> Files:
    entry = plan.tables[table]
    trained = entry.runs.items() if entry.table.kind == "training" else []
    # Protocols may share their images; real points stand beside sampled ones.
    images = dict.fromkeys(plan.images(key) for key in entry.picture_cells)
    real = entry.protocols[:1] if entry.table.kind == "scatter" else []
    return {
        **_table(plan, table),
        "curves": [
            plan.file("curve", run=run.name, seed=seed) for row, run in trained for seed in entry.seeds[row]
        ],
        "images": list(images),
        "reference": [file for protocol in real for file in reference(plan, protocol)],
    }


def _claims(plan: Plan) -> Files:
    cells = (key for claim in plan.claims for keys in claim.cells for key in keys)
    return {"metrics": list(dict.fromkeys(map(plan.metrics, cells)))}


def _report(plan: Plan) -> Files:
    """The files of every target but the page itself."""
    return {"parts": [file for target in plan.wanted if target != "report" for file in plan.parts_of(target)]}


# Of stages that read more than their spec.
_INPUTS: dict[str, Callable[..., Files]] = {
    "encode": _encode,
    "manifest": _manifest,
    "adopt": _adopt,
    "train": _train,
    "sample": _sample,
    "reference": _reference,
    "score": _score,
    "table": _table,
    "figure": _figure,
    "claims": _claims,
    "report": _report,
}


def inputs(plan: Plan, stage: str, key: Mapping[str, str]) -> Files:
    """Input files of a job by the name of the option that takes them, without its spec."""
    return _INPUTS[stage](plan, **key) if stage in _INPUTS else {}
