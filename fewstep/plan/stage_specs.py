"""What each stage's spec holds: the slice of the configuration that its result depends on."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..config import specs
from ..config.backbones import ClassNetwork, Sd3
from ..config.base import ConfigError, Strict, digest, require_known
from ..config.pipelines import NEVER_RUN
from ..config.sampling import Choice, Sampling
from ..config.settings import Dataset, Guidance, Sampler
from ..config.tables import Row
from ..config.text import LikelihoodProtocol, PromptProtocol, PromptSet, SampledProtocol
from . import paths
from .cells import PICTURES, ResolvedTable, check_sampler
from .costs_spec import planned
from .jobs import dependencies, inputs, report_trainings, score_files, weights
from .marks import hyperparameters_by_scale
from .runs import BASE, Run

if TYPE_CHECKING:
    from . import Plan


CLAIMS = "claims"
"""Target of the claims that the page shows."""
_PRINTED = re.compile(r"(?:LightningDiT|SiT|DiT)-[A-Z]+/\d|SD3\.5-Medium")
"""Names of the papers' networks in the labels of rows."""


def _latents(plan: Plan, name: str) -> specs.LatentCard:
    entry = plan.parts.latents[name]
    dataset = plan.parts.datasets[entry.dataset]
    tokenizer = plan.parts.tokenizers[entry.tokenizer]
    return specs.LatentCard(
        name=name,
        shape=tokenizer.shape,
        classes=dataset.classes,
        images=dataset.images,
        tokenizer=tokenizer,
        names=dataset.names,
    )


def _text_card(plan: Plan, encoder: str, captions: str) -> specs.TextCard:
    return specs.TextCard(
        name=captions,
        captions=plan.number_of_captions(captions),
        encoder=plan.parts.text_encoders[encoder],
    )


def _text(plan: Plan, encoder: str, captions: str) -> Strict:
    found = plan.captions[captions]
    return specs.TextSpec(
        text=_text_card(plan, encoder, captions),
        dataset=found if isinstance(found, Dataset) else None,
        prompts=found if isinstance(found, PromptSet) else None,
        backbone=plan.network(plan.parts.text_encoders[encoder].weights),
    )


def _fetch(plan: Plan, asset: str) -> Strict:
    return specs.FetchSpec(name=asset, asset=plan.config.assets[asset])


def _encode(plan: Plan, latents: str) -> Strict:
    entry = plan.parts.latents[latents]
    tokenizer = plan.parts.tokenizers[entry.tokenizer]
    return specs.EncodeSpec(
        name=latents,
        dataset=plan.parts.datasets[entry.dataset],
        tokenizer=tokenizer,
        latents=entry,
        backbone=plan.network(tokenizer.weights),
    )


def _adopt(plan: Plan, run: str) -> Strict:
    entry = plan.runs[run]
    published = entry.published
    if published is None:
        file = plan.config.method_files[entry.method]
        raise ConfigError(f"{file}: {entry.method}.weights: no published file to adopt")
    return specs.AdoptSpec(
        method=entry.method,
        backbone=entry.backbone,
        asset=published.asset,
        file=published.file,
        tokenizer=plan.parts.tokenizers[published.tokenizer],
        reverse=published.reverse,
        new_labels=published.new_labels,
        sampler=plan.parts.samplers[published.sampler] if published.sampler else None,
    )


def _reembed(plan: Plan, run: str) -> Strict:
    entry = plan.runs[run]
    if not isinstance(entry.backbone, Sd3) or entry.entry.reembed is None:
        raise ConfigError(f"{entry.place}.reembed: it does not embed a time anew")
    return specs.ReembedSpec(method=entry.method, backbone=entry.backbone, reembed=entry.entry.reembed)


def _export(plan: Plan, run: str) -> Strict:
    entry, base = plan.runs[run], plan.base(run)
    origin = plan.run(base.entry.reembed.of) if base.entry.reembed else base
    dataset = plan.parts.datasets[plan.parts.latents[entry.recipe.latents].dataset]
    asset = origin.published.asset if origin.published else dataset.asset
    assert isinstance(entry.backbone, Sd3)
    return specs.ExportSpec(
        method=entry.method,
        variant=entry.variant,
        backbone=entry.backbone,
        guidance=entry.guidance,
        licence=plan.config.assets[asset].licence,
    )


def _pipeline(plan: Plan, run: str) -> Strict:
    entry = plan.runs[run]
    where = f"{entry.place}.backbone"
    if entry.only_pipeline:
        raise ConfigError(f"{entry.place}: is a released pipeline of diffusers; use that")
    if isinstance(entry.backbone, ClassNetwork):
        if entry.tokenizer.kind == "points":
            raise ConfigError(f"{where}: its samples are points, not images, and a pipeline makes images")
        sampling = _sampling(plan, run)
        return specs.ClassPipelineSpec(method=entry.method, variant=entry.variant, sampling=sampling)
    if entry.adopted:
        raise ConfigError(f"{where}: published weights have a folder of diffusers already; use that")
    if not isinstance(entry.backbone, Sd3):
        raise ConfigError(f"{where}: {entry.network} makes no images of classes or captions")
    if entry.backbone.lora or entry.backbone.target_time:
        file = plan.file("lora", run=run, seed="0")
        raise ConfigError(f"{where}: {entry.network} is no plain SD3; adapters of one are written as {file}")
    encoder = plan.parts.text_encoders[entry.text_encoder or ""]
    decoder, network = plan.network(entry.tokenizer.weights), plan.network(encoder.weights)
    if decoder is None or network is None:
        raise ConfigError(f"{where}: its tokenizer or its text encoder is not trained here")
    return specs.PipelineSpec(
        method=entry.method,
        backbone=entry.backbone,
        latents=_latents(plan, entry.recipe.latents),
        decoder=decoder,
        text=encoder,
        encoder=network,
    )


def _train(plan: Plan, run: str, seed: str) -> Strict:
    entry = plan.runs[run]
    captions = plan.parts.latents[entry.recipe.latents].dataset
    taught = entry.has_teacher
    return specs.TrainSpec(
        method=entry.method,
        variant=entry.variant,
        seed=int(seed),
        loss=entry.loss,
        backbone=entry.backbone,
        latents=_latents(plan, entry.recipe.latents),
        text=_text_card(plan, entry.text_encoder, captions) if entry.text_encoder else None,
        teacher=taught,
        guidance=entry.guidance if taught else None,
        label_dropout=0.0 if taught and not entry.loss.follows_data else entry.recipe.label_dropout,
        train=entry.train,
        continues=_continued(plan, entry, seed),
    )


def _continued(plan: Plan, run: Run, seed: str) -> specs.Continued | None:
    """The training with which a run goes on.

    Raises:
        ConfigError: published weights take its place.
    """
    if run.continues is None:
        return None
    before = plan.run(run.continues)
    if before.maker != "train":
        raise ConfigError(f"{run.place}.continues: with weights=released {before.method} is not trained")
    spec = digest(_train(plan, before.name, seed))
    return specs.Continued(run=before.name, spec=spec, steps=before.train.steps)


def _bench(plan: Plan) -> Strict:
    bench = plan.config.root.bench
    runs = [plan.run(name) for name in bench.methods]
    plan.refuse_unmet(run.name for run in runs)
    first = runs[0]
    teacher = plan.run(first.teacher) if first.teacher else None
    return specs.BenchSpec.model_validate(
        {
            "backbone": first.backbone,
            "teacher": teacher.backbone if teacher else None,
            "guidance": first.guidance if teacher else None,
            "precision": first.train.precision,
            "losses": {run.method: run.loss for run in runs},
            "bench": bench,
        }
    )


def _sample(
    plan: Plan, run: str, sampler: str, steps: str, images: str
) -> specs.SampleSpec | specs.PipelineSampleSpec:
    entry = plan.runs[run]
    check_sampler(plan.config, entry, sampler, int(steps), f"cell {run}/{sampler}-{steps}")
    protocol = plan.image_sets[images]
    chosen = plan.parts.samplers[sampler]
    if chosen.kind == "pipeline":
        return _pipeline_sample(plan, entry, int(steps), protocol)
    return specs.SampleSpec(
        backbone=entry.backbone,
        expanded=entry.expanded,
        sampler=chosen.model_copy(update={"guidance": "none"}),
        guidance=_sampling_guidance(entry, chosen),
        steps=int(steps),
        images=protocol.images,
        labels=protocol.labels,
        uint8=protocol.uint8,
        seed=protocol.seed,
        network_dtype=protocol.network_dtype,
        decoder_dtype=protocol.decoder_dtype,
        latents=_latents(plan, entry.recipe.latents),
        text=_text_card(plan, entry.text_encoder, plan.prompts_of(entry, protocol))
        if entry.text_encoder
        else None,
        image=_image(plan, entry),
        decoder=plan.network(entry.tokenizer.weights),
    )


def _sampling(plan: Plan, run: str) -> Sampling:
    """How a run's images are made where nothing else is asked for."""
    entry = plan.runs[run]
    published = entry.published.sampler if entry.published else None
    named = entry.entry.samplers or ({"default": published} if published else {})
    samplers = {str(steps): plan.parts.samplers[name] for steps, name in named.items()}
    computed = (plan.parts.protocols[name] for name in entry.recipe.protocols)
    protocols = [protocol for protocol in computed if not isinstance(protocol, LikelihoodProtocol)]
    dataset = plan.parts.datasets[plan.parts.latents[entry.recipe.latents].dataset]
    folder = PurePosixPath(plan.model(entry.method, entry.variant)).parent
    files = [posixpath.relpath(file, folder) for file in weights(plan, entry.tokenizer.weights)]
    return Sampling(
        title=entry.entry.title,
        paper=entry.entry.paper,
        licence=plan.config.assets[entry.published.asset if entry.published else dataset.asset].licence,
        samplers={
            steps: Choice(
                sampler=sampler.model_copy(update={"guidance": "none"}),
                guidance=_sampling_guidance(entry, sampler),
            )
            for steps, sampler in samplers.items()
        },
        expanded=entry.expanded,
        image=_image(plan, entry),
        uint8=protocols[0].uint8 if protocols else "round",
        decoder=plan.network(entry.tokenizer.weights),
        tokenizer_file=files[0] if files else None,
    )


def _pipeline_sample(plan: Plan, run: Run, steps: int, protocol: SampledProtocol) -> specs.PipelineSampleSpec:
    pipeline = plan.pipeline(run, steps)
    return specs.PipelineSampleSpec(
        pipeline=pipeline,
        steps=steps,
        images=protocol.images,
        labels=protocol.labels,
        uint8=protocol.uint8,
        seed=protocol.seed,
        prompts=plan.pipeline_prompts(run, protocol),
        image=[3, pipeline.image, pipeline.image],
    )


def _sampling_guidance(run: Run, sampler: Sampler) -> Guidance | None:
    """Velocity normalisation belongs to distillation; sampling uses plain guidance."""
    if sampler.guidance == "none":
        return None
    if isinstance(sampler.guidance, Guidance):
        return sampler.guidance
    assert run.recipe.guidance is not None
    return run.recipe.guidance.model_copy(update={"normalise": "none"})


def _reference(plan: Plan, protocol: str) -> Strict:
    entry = plan.features_protocol(protocol)
    if entry.stored:
        raise ConfigError(
            f"{plan.config.root.files.settings}: protocols.{protocol}: its reference is published"
        )
    return specs.ReferenceSpec(
        protocol=entry,
        extractor=plan.network(entry.weights),
        latents=_latents(plan, entry.reference_latents) if entry.reference_latents else None,
    )


def _scorers(plan: Plan, protocol: PromptProtocol) -> dict[str, Any]:
    """The fields of `specs.PromptScorers`."""
    networks = {name: plan.network(scorer.weights) for name, scorer in protocol.scorers.items()}
    return {
        "protocol": protocol,
        "prompts": plan.parts.prompts[protocol.prompts],
        "scorers": {name: network for name, network in networks.items() if network is not None},
    }


def _bounds(plan: Plan, table: str) -> Strict:
    entry, protocol = plan.bounds_of(table)
    scenes = plan.config.assets[plan.parts.prompts[protocol.prompts].asset].scenes
    assert scenes is not None
    tokenizer = plan.parts.tokenizers[entry.tokenizer]
    return specs.BoundsSpec(
        scenes=scenes,
        scenes_of_each=entry.scenes_of_each,
        tokenizer=tokenizer,
        decoder=plan.network(tokenizer.weights),
        **_scorers(plan, protocol),
    )


def _examples(plan: Plan, table: str) -> Strict:
    dataset, prompts = plan.examples_of(table)
    found = plan.parts.datasets[dataset]
    chosen = plan.parts.prompts[prompts] if prompts else None
    labels = plan.tables[table].table.classes
    return specs.ExamplesSpec(
        dataset=found,
        labels=labels or [*range(min(10, chosen.prompts if chosen else found.classes))],
        prompts=chosen,
    )


def _score(plan: Plan, run: str, seed: str, sampler: str, steps: str, protocol: str) -> Strict:
    entry = plan.parts.protocols[protocol]
    cell = plan.runs[run].cell(int(seed), sampler, int(steps), protocol)
    if isinstance(entry, LikelihoodProtocol):
        return _likelihood(plan, plan.runs[run], cell, entry)
    sample = _sample(plan, run, sampler, steps, plan.image_set(protocol))
    if isinstance(entry, PromptProtocol):
        return specs.PromptScoreSpec(cell=cell, sample=sample, **_scorers(plan, entry))
    assert isinstance(sample, specs.SampleSpec)
    return specs.ScoreSpec(cell=cell, protocol=entry, extractor=plan.network(entry.weights), sample=sample)


def _likelihood(plan: Plan, run: Run, cell: specs.CellKey, protocol: LikelihoodProtocol) -> Strict:
    where = f"cell {run.name}/{cell.sampler}-{cell.steps}"
    check_sampler(plan.config, run, cell.sampler, cell.steps, where)
    if run.learned_guidance != 1:
        raise ConfigError(
            f"{where}: bpd: {run.name} has learned guidance of scale {run.learned_guidance:g}, whose field "
            "has no density of the data; set guidance.scale to 1"
        )
    if run.expanded:
        raise ConfigError(
            f"{where}: bpd: {run.name} has its velocity at the time condition 2 - t, which is not followed"
        )
    return specs.LikelihoodScoreSpec(
        cell=cell,
        protocol=protocol,
        backbone=run.backbone,
        latents=_latents(plan, protocol.real_latents),
        sampler=plan.parts.samplers[cell.sampler],
        steps=cell.steps,
        scale=getattr(run.loss, "scale", None) if run.loss.scalar else None,
    )


def foreign_score(plan: Plan, protocol: str) -> tuple[specs.ForeignSpec, dict[str, list[str]]]:
    """Spec of a score of images from elsewhere under a protocol, and the files that it reads.

    Raises:
        ConfigError: no such protocol, or images of several sizes are scored by it.
    """
    require_known(protocol, plan.parts.protocols, plan.config.root.files.settings, "protocol")
    entry = plan.parts.protocols[protocol]
    recipes = [recipe for recipe in plan.parts.recipes.values() if protocol in recipe.protocols]
    datasets = [plan.parts.datasets[plan.parts.latents[recipe.latents].dataset] for recipe in recipes]
    shapes = {(each.channels, each.resolution, each.resolution) for each in datasets}
    if len(shapes) != 1:
        raise ConfigError(f"protocols.{protocol}: recipes use it for images of {len(shapes)} sizes, not one")
    (image,) = shapes
    if isinstance(entry, LikelihoodProtocol):
        raise ConfigError(
            f"protocols.{protocol}: is of likelihoods under a model, not of images; use another"
        )
    spec: specs.ForeignSpec
    if isinstance(entry, PromptProtocol):
        spec = specs.ForeignPromptScoreSpec(image=[*image], **_scorers(plan, entry))
    else:
        spec = specs.ForeignScoreSpec(protocol=entry, extractor=plan.network(entry.weights), image=[*image])
    return spec, score_files(plan, protocol)


def _image(plan: Plan, run: Run) -> list[int]:
    """(C, H, W) of the images of a run's data set."""
    dataset = plan.parts.datasets[plan.parts.latents[run.recipe.latents].dataset]
    return [dataset.channels, dataset.resolution, dataset.resolution]


def _table(plan: Plan, table: str) -> Strict:
    entry = plan.tables[table]
    runs, rows = entry.runs, entry.table.rows
    # A run that cannot be had is, in this table, a reported number.
    shown = [
        row.model_copy(update=_own_network(row, runs[row.id]) if row.id in runs else {"method": None})
        for row in rows
    ]
    untried = {row for row, run in runs.items() if run.pipeline and not run.pipeline.tried}
    shown = [
        row.model_copy(update={"note": f"{row.note} {NEVER_RUN}".strip()}) if row.id in untried else row
        for row in shown
    ]
    return specs.TableSpec(
        name=table,
        scale=_scale(_behind(plan, table)),
        protocols=entry.protocols,
        extra_metrics=entry.extra_metrics,
        table=entry.table.model_copy(update={"rows": shown}),
        rows=[specs.RowCells(id=row, cells=cells) for row, cells in entry.cells.items()],
        parameters=entry.parameters,
        runs={
            row: specs.RunName(
                method=run.method, variant=run.variant, loss=run.loss.name, seeds=entry.seeds[row]
            )
            for row, run in runs.items()
        },
        class_names=_class_names(plan, entry),
    )


def _class_names(plan: Plan, entry: ResolvedTable) -> list[str]:
    """Of a figure of samples whose runs have the same classes, if these have names."""
    if entry.table.kind not in ("grid", "samples"):
        return []
    latents = (plan.parts.latents[run.recipe.latents] for run in entry.runs.values())
    named = [plan.parts.datasets[each.dataset].names or [] for each in latents]
    return named[0] if all(names == named[0] for names in named) and named else []


def _own_network(row: Row, run: Run) -> dict[str, str]:
    """Words of a row in which the paper's network is replaced by the row's own, where that is smaller."""
    if run.recipe.scale not in ("demo", "small"):
        return {}
    name = run.network_text.partition(",")[0]
    words = {key: _PRINTED.sub(name, getattr(row, key)) for key in ("group", "label")}
    words = {key: re.sub(r"-XL/\d", "", text) for key, text in words.items()}
    return {**words, "params": run.network_text if row.params else ""}


def _behind(plan: Plan, table: str) -> list[Run]:
    """The runs of a table's numbers: its rows', or those that score real scenes."""
    if plan.config.tables[table].bounds is None:
        return list(plan.tables[table].runs.values())
    bounds, protocol = plan.bounds_of(table)
    given = [*protocol.files, plan.parts.tokenizers[bounds.tokenizer].weights]
    return [plan.run(weights.method) for weights in given if weights is not None and weights.method]


def _scale(runs: Iterable[Run]) -> str:
    """Scale of a result: the paper's only if every run behind it has it. Beside others, toys do not count."""
    scales = {run.recipe.scale for run in runs}
    return "/".join(sorted(scales - {"toy"} or scales)) or "paper"


def _claims(plan: Plan, claims: str) -> Strict:
    chosen = plan.claims_of(claims)
    keys = [key for entry in chosen for cells in entry.cells for key in cells]
    left = {entry.claim.id: plan.run(entry.claim.left.method) for entry in chosen}
    return specs.ClaimsSpec(
        claims=[entry.claim for entry in chosen],
        cells={entry.claim.id: entry.cells for entry in chosen},
        seeds=plan.config.claim_seeds,
        toys=[name for name, run in left.items() if run.recipe.scale == "toy"],
        scale=_scale(plan.run(key.method, key.variant) for key in keys),
    )


def _report(plan: Plan) -> Strict:
    root = plan.config.root
    names = [name for name in plan.wanted if name in plan.tables]
    runs = [run for name in names for run in plan.tables[name].runs.values()]
    methods = {run.method: run for run in runs}
    protocols = dict.fromkeys(key for run in runs for key in run.recipe.protocols)
    protocols |= dict.fromkeys(key for name in names for key in plan.tables[name].protocols)
    tables = {name: plan.config.tables[name] for name in names}
    shown = {name: _sources(plan, name) for name in names}
    of_items = [cells for rows in shown.values() for columns in rows.values() for cells in columns]
    claims = {
        entry.claim.id: _scores(plan, [key for keys in entry.cells for key in keys])
        for entry in (plan.claims_of(CLAIMS) if CLAIMS in plan.wanted else [])
    }
    trained = report_trainings(plan)
    files = [file for group in inputs(plan, "report", {}).values() for file in group]
    jobs = [job.key for job in dependencies(plan, files) if job.stage == "train"]
    return specs.ReportSpec(
        title=root.title,
        scale=_scale(run for name in names for run in _behind(plan, name)),
        command=root.command,
        target=plan.file("page"),
        sources={name: files for cells in [*of_items, *claims.values()] for name, files in cells.items()},
        claims={name: list(cells) for name, cells in claims.items()},
        items=[
            specs.ReportItem(
                name=name,
                target=plan.parts_of(name)[0],
                cells={row: [list(cells) for cells in columns] for row, columns in shown[name].items()},
                extra_metrics={} if table.bounds else plan.tables[name].extra_metrics,  # all are in one file
                **table.model_dump(include={"kind", "title", "paper", "caption"}),
            )
            for name, table in tables.items()
        ],
        methods={
            name: specs.ReportMethod(
                title=run.entry.title,
                paper=run.entry.paper,
                loss=run.loss.name,
                network=run.network_text,
                parameters=hyperparameters_by_scale(plan.run(name), plan.published.get(f"{name}/{BASE}")),
                trainings=[
                    _training(plan, run, seed) for run, seed in trained if plan.runs[run].method == name
                ],
            )
            for name, run in methods.items()
        },
        times=[_from_page(plan, plan.path(paths.TIME, **key)) for key in jobs],
        protocols={key: plan.parts.protocols[key] for key in protocols},
    )


Cells = dict[str, specs.SourceFiles]
"""Name of a cell, of a training or of images -> the files behind it."""


def _sources(plan: Plan, table: str) -> dict[str, list[Cells]]:
    """Row id, or "" for all -> for each number of steps, what is behind the number, the curve or the picture.

    Of several protocols the first, which the number in the row's own column is of, stands first.
    """
    entry = plan.tables[table]
    if entry.table.kind == "training":
        seeds = entry.seeds.items()
        return {
            row: [_trainings(plan, entry.runs[row].name, found)] for row, found in seeds if row in entry.runs
        }
    if entry.table.bounds is not None:
        files = _source_files(plan, "bounds", plan.file("bounds", table=table), table=table)
        return {"": [{table: files}]}
    if entry.table.kind in PICTURES:
        shown = set(entry.picture_cells)
        firsts = {row: next(iter(cells.values())) for row, cells in entry.cells.items() if cells}
        return {
            row: [_images(plan, [key for key in keys if key in shown]) for keys in columns]
            for row, columns in firsts.items()
        }
    order = dict.fromkeys([*entry.protocols, *entry.extra_metrics.values()])
    return {
        row: [
            _scores(plan, [key for keys in column for key in keys]) for column in zip(*columns, strict=True)
        ]
        for row, cells in entry.cells.items()
        if (columns := [cells[name] for name in order if name in cells])
    }


def _trainings(plan: Plan, run: str, seeds: Iterable[int]) -> Cells:
    keys = ({"run": run, "seed": str(seed)} for seed in seeds)
    return {
        f"{run}/{key['seed']}": _source_files(plan, "train", plan.file("curve", **key), **key) for key in keys
    }


def _images(plan: Plan, cells: Iterable[specs.CellKey]) -> Cells:
    """Images are gone once they are shown; what they were made by stays."""
    found = {}
    for key in cells:
        images = plan.image_set(key.protocol)
        name = f"{_cell_name(key)}/{images}"
        found[name] = _source_files(plan, "sample", "", **key.wildcards, images=images)
    return found


def _scores(plan: Plan, cells: Iterable[specs.CellKey]) -> Cells:
    found = {}
    for key in cells:
        name = f"{_cell_name(key)}/{key.protocol}"
        found[name] = _source_files(plan, "score", plan.metrics(key), **key.wildcards)
    return found


def _cell_name(key: specs.CellKey) -> str:
    return f"{key.method}/{key.variant}/{key.seed}/{key.sampler}-{key.steps}"


def _from_page(plan: Plan, path: str) -> str:
    """The path of a file, relative to the page."""
    return posixpath.relpath(path, PurePosixPath(plan.file("page")).parent)


def _source_files(plan: Plan, stage: str, result: str, **key: str) -> specs.SourceFiles:
    return specs.SourceFiles(
        result=_from_page(plan, result) if result else "",
        spec=_from_page(plan, plan.spec_file(stage, **key)),
        log=_from_page(plan, plan.path(paths.LOGS[stage], **key)),
    )


def _training(plan: Plan, run: str, seed: int) -> specs.ReportTraining:
    ((name, files),) = _trainings(plan, run, [seed]).items()
    time = _from_page(plan, plan.path(paths.TIME, run=run, seed=seed))
    return specs.ReportTraining(name=name, time=time, **files.model_dump())


def _costs(plan: Plan) -> Strict:
    lines, jobs = planned(plan)
    named = {name for line in lines for work in line.work for name in (work.network, work.teacher) if name}
    named |= {name for line in lines for name in line.models}
    costs = plan.config.costs
    return specs.CostsSpec(
        lines=lines,
        jobs=jobs,
        networks={name: plan.parts.backbones[name] for name in sorted(named)},
        operations=costs.operations,
        start=costs.start,
        restart=costs.restart,
    )


BUILDERS: dict[str, Callable[..., Strict]] = {
    "fetch": _fetch,
    "encode": _encode,
    "text": _text,
    "adopt": _adopt,
    "reembed": _reembed,
    "sampling": _sampling,
    "train": _train,
    "bench": _bench,
    "export": _export,
    "pipeline": _pipeline,
    "sample": _sample,
    "reference": _reference,
    "bounds": _bounds,
    "examples": _examples,
    "score": _score,
    "table": _table,
    "claims": _claims,
    "report": _report,
    "costs": _costs,
}
