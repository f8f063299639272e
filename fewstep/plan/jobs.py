"""Which files a job reads, and which jobs lead to some files: the DAG, from the targets up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.base import ConfigError
from ..config.settings import Weights
from ..config.text import LikelihoodProtocol, PromptProtocol
from . import paths
from .cells import PICTURES
from .runs import BASE

if TYPE_CHECKING:
    from . import Plan
    from .runs import Run

Files = dict[str, list[str]]


@dataclass(frozen=True)
class Job:
    stage: str
    key: dict[str, str]
    """The wildcards of its output."""

    def __hash__(self) -> int:
        return hash((self.stage, *sorted(self.key.items())))


def dependencies(plan: Plan, files: Iterable[str]) -> dict[Job, list[Job]]:
    """Every job behind some files, with the jobs that make what it reads; without those that write specs."""
    reads: dict[Job, list[str]] = {}
    makers: dict[str, Job] = {}
    queue = list(files)
    for file in queue:
        if file in makers:
            continue
        job = makers[file] = maker(plan, file)
        if job not in reads:
            groups = inputs(plan, job.stage, job.key).values()
            reads[job] = [each for group in groups for each in group]
            queue += reads[job]
    return {job: list(dict.fromkeys(makers[file] for file in read)) for job, read in reads.items()}


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
        if kind == "model":
            stage = plan.runs[key["run"]].maker
            if stage == "nothing":
                break
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


def _text(plan: Plan, encoder: str, captions: str) -> Files:
    found = plan.captions[captions]
    return {
        "captions": [plan.file("record", asset=found.asset)],
        "encoder": weights(plan, plan.parts.text_encoders[encoder].weights),
    }


def text(plan: Plan, run: Run, captions: str) -> list[str]:
    """The store of some captions as a run's network is given them; empty if it is given none."""
    encoder = run.text_encoder
    return [plan.file("text", encoder=encoder, captions=captions)] if encoder else []


def _reembed(plan: Plan, run: str, **_: str) -> Files:
    entry = plan.runs[run].entry.reembed
    return {"model": [plan.model(entry.of)] if entry else []}


def _adopt(plan: Plan, run: str, **_: str) -> Files:
    published = plan.runs[run].published
    return {"asset": [plan.file("record", asset=published.asset)] if published else []}


def _train(plan: Plan, run: str, seed: str) -> Files:
    entry = plan.runs[run]
    latents = entry.recipe.latents
    dataset = plan.parts.latents[latents].dataset
    live = plan.live_text(entry)
    return {
        "latents": [plan.file("manifest", latents=latents)],
        "text": [] if live else text(plan, entry, dataset),
        **(_text(plan, live, dataset) if live else {"captions": [], "encoder": []}),
        "teacher": [plan.model(entry.teacher)] if entry.teacher else [],
        "continued": [plan.file("model", run=f"{entry.continues}/{BASE}", seed=seed)]
        if entry.continues
        else [],
    }


def _export(plan: Plan, run: str, seed: str) -> Files:
    base = plan.base(run)
    of = base.entry.reembed.of if base.entry.reembed else None
    return {
        "model": [plan.file("model", run=run, seed=seed)],
        "base": [plan.model(base.method)],
        "origin": [plan.model(of)] if of else [],
    }


def _pipeline(plan: Plan, run: str, seed: str) -> Files:
    entry = plan.runs[run]
    encoder = plan.parts.text_encoders[entry.text_encoder] if entry.text_encoder else None
    return {
        "model": [plan.file("model", run=run, seed=seed)],
        "latents": [plan.file("manifest", latents=entry.recipe.latents)] if entry.tokenizer.measured else [],
        "tokenizer": weights(plan, entry.tokenizer.weights),
        "encoder": weights(plan, encoder.weights) if encoder else [],
    }


def _sample(plan: Plan, run: str, seed: str, sampler: str, steps: str, images: str) -> Files:
    entry = plan.runs[run]
    protocol = plan.image_sets[images]
    if plan.parts.samplers[sampler].kind == "pipeline":
        records = [plan.file("record", asset=name) for name in plan.pipeline(entry, int(steps)).assets]
        prompts = plan.pipeline_prompts(entry, protocol)
        ours: Files = {option: [] for option in ("model", "base", "text", "latents", "tokenizer")}
        return {**ours, "pipeline": records, "prompts": [plan.file("record", asset=prompts.asset)]}
    # Elsewhere the tokenizer's own files say how its latents are normalised.
    manifest = [plan.file("manifest", latents=entry.recipe.latents)] if entry.tokenizer.measured else []
    return {
        "model": [plan.file("model", run=run, seed=seed)],
        "base": [plan.model(entry.base)] if entry.base else [],
        "text": text(plan, entry, plan.prompts_of(entry, protocol)),
        "latents": manifest,
        "tokenizer": weights(plan, entry.tokenizer.weights),
        "pipeline": [],
        "prompts": [],
    }


def _reference(plan: Plan, protocol: str) -> Files:
    entry = plan.features_protocol(protocol)
    latents = entry.reference_latents
    return {
        "latents": [plan.file("manifest", latents=latents)] if latents else [],
        "published": weights(plan, entry.reference),
        "extractor": weights(plan, entry.weights),
    }


def reference(plan: Plan, protocol: str) -> list[str]:
    """Reference statistics: computed here, or the record of a published file."""
    entry = plan.features_protocol(protocol)
    return weights(plan, entry.reference) if entry.stored else [plan.file("statistics", protocol=protocol)]


def _scorers(plan: Plan, protocol: PromptProtocol) -> Files:
    """What images are scored with by a protocol of prompts."""
    asset = plan.parts.prompts[protocol.prompts].asset
    return {
        "prompts": [plan.file("record", asset=asset)],
        "scorers": [path for given in protocol.files for path in weights(plan, given)],
    }


def _bounds(plan: Plan, table: str) -> Files:
    entry, protocol = plan.bounds_of(table)
    return {
        **_scorers(plan, protocol),
        "tokenizer": weights(plan, plan.parts.tokenizers[entry.tokenizer].weights),
    }


def _examples(plan: Plan, table: str) -> Files:
    dataset, prompts = plan.examples_of(table)
    sources = [] if prompts is None else [plan.file("record", asset=plan.parts.prompts[prompts].asset)]
    return {
        "source": [plan.file("record", asset=plan.parts.datasets[dataset].asset)],
        "prompts": sources,
    }


def _score(plan: Plan, protocol: str, **cell: str) -> Files:
    entry = plan.parts.protocols[protocol]
    if isinstance(entry, LikelihoodProtocol):
        return {
            "images": [],
            **score_files(plan, protocol),
            "model": [plan.file("model", run=cell["run"], seed=cell["seed"])],
            "latents": [plan.file("manifest", latents=entry.real_latents)],
        }
    images = [plan.file("images", images=plan.image_set(protocol), **cell)]
    return {"images": images, **score_files(plan, protocol), "model": [], "latents": []}


def _images(plan: Plan, **cell: str) -> Files:
    return {"images": [plan.file("images", **cell)]}


def score_files(plan: Plan, protocol: str) -> Files:
    """What a score reads beside the images, and for whichever."""
    entry = plan.parts.protocols[protocol]
    none: Files = {option: [] for option in ("extractor", "reference", "prompts", "scorers")}
    if isinstance(entry, LikelihoodProtocol):
        return none
    if isinstance(entry, PromptProtocol):
        return {**none, **_scorers(plan, entry)}
    return {
        **none,
        "extractor": weights(plan, entry.weights),
        "reference": reference(plan, protocol),
    }


def _table(plan: Plan, table: str) -> Files:
    entry = plan.tables[table]
    shown = entry.table.kind in (*PICTURES, "training")
    return {
        "metrics": [] if shown else [plan.metrics(key) for key in entry.all_cells],
        "bounds": [plan.file("bounds", table=table)] if entry.table.bounds else [],
    }


def _figure(plan: Plan, table: str) -> Files:
    entry = plan.tables[table]
    trained = entry.runs.items() if entry.table.kind == "training" else []
    # Protocols may share their images; real points stand beside sampled ones.
    images = dict.fromkeys(plan.images(key) for key in entry.picture_cells)
    real = entry.protocols[:1] if entry.table.kind == "scatter" else []
    return {
        "metrics": _table(plan, table)["metrics"],
        "curves": [
            plan.file("curve", run=run.name, seed=seed) for row, run in trained for seed in entry.seeds[row]
        ],
        "images": list(images),
        "reference": [file for protocol in real for file in reference(plan, protocol)],
        "real": [plan.file("examples", table=table)] if plan.has_examples(table) else [],
    }


def _claims(plan: Plan, claims: str) -> Files:
    cells = (key for claim in plan.claims_of(claims) for keys in claim.cells for key in keys)
    return {"metrics": list(dict.fromkeys(map(plan.metrics, cells)))}


def _report(plan: Plan) -> Files:
    """The files of every target but the page itself, and the curves of the trainings that the page shows."""
    return {
        "parts": [file for target in plan.wanted if target != "report" for file in plan.parts_of(target)],
        "curves": [plan.file("curve", run=run, seed=seed) for run, seed in report_trainings(plan)],
    }


def report_trainings(plan: Plan) -> list[tuple[str, int]]:
    """Run and first seed of every training behind the tables and figures of the report; of a run once."""
    shown = [plan.tables[name] for name in plan.wanted if name in plan.tables]
    runs = {run.name: entry.seeds[row] for entry in shown for row, run in entry.runs.items()}
    return [(run, seeds[0]) for run, seeds in runs.items() if seeds and plan.runs[run].maker == "train"]


# Of stages that read more than their spec.
_INPUTS: dict[str, Callable[..., Files]] = {
    "encode": _encode,
    "manifest": _manifest,
    "text": _text,
    "adopt": _adopt,
    "reembed": _reembed,
    "train": _train,
    "export": _export,
    "pipeline": _pipeline,
    "sample": _sample,
    "reference": _reference,
    "images": _images,
    "pictures": _images,
    "bounds": _bounds,
    "examples": _examples,
    "score": _score,
    "table": _table,
    "figure": _figure,
    "claims": _claims,
    "report": _report,
}


def inputs(plan: Plan, stage: str, key: Mapping[str, str]) -> Files:
    """Input files of a job by the name of the option that takes them, without its spec."""
    return _INPUTS[stage](plan, **key) if stage in _INPUTS else {}
