"""What each stage's spec holds: the slice of the configuration that its result depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..config.base import ConfigError, Strict, require_known
from ..config.settings import Guidance, Sampler
from ..config.specs import (
    AdoptSpec,
    BenchSpec,
    CellKey,
    ClaimsSpec,
    EncodeSpec,
    FetchSpec,
    LatentCard,
    ReferenceSpec,
    ReportItem,
    ReportMethod,
    ReportSpec,
    RowCells,
    RunName,
    SampleSpec,
    ScoreSpec,
    TableSpec,
    TrainSpec,
)
from .cells import Cells
from .marks import hyperparameter_sources
from .runs import Run


def spec(plan: Cells, stage: str, name: str) -> Strict:
    """The spec of a stage; ``name`` is its path below <results>/specs/<stage>/."""
    require_known(stage, _SPECS, "workflow", "stage")
    return _SPECS[stage](plan, *name.split("/"))


def _latents(plan: Cells, name: str) -> LatentCard:
    entry = plan.parts.latents[name]
    dataset = plan.parts.datasets[entry.dataset]
    tokenizer = plan.parts.tokenizers[entry.tokenizer]
    return LatentCard(
        name=name,
        shape=tokenizer.shape,
        classes=dataset.classes,
        images=dataset.images,
        tokenizer=tokenizer,
    )


def _fetch(plan: Cells, asset: str) -> Strict:
    return FetchSpec(name=asset, asset=plan.config.assets[asset])


def _encode(plan: Cells, name: str) -> Strict:
    entry = plan.parts.latents[name]
    tokenizer = plan.parts.tokenizers[entry.tokenizer]
    return EncodeSpec(
        name=name,
        dataset=plan.parts.datasets[entry.dataset],
        tokenizer=tokenizer,
        latents=entry,
        backbone=plan.network(tokenizer.weights),
    )


def _adopt(plan: Cells, method: str, variant: str) -> Strict:
    run = plan.run(method, variant)
    weights = run.published
    if weights is None:
        raise ConfigError(f"{plan.config.method_files[method]}: {method}.weights: no published file to adopt")
    return AdoptSpec(
        method=method,
        backbone=run.backbone,
        asset=weights.asset,
        file=weights.file,
        tokenizer=plan.parts.tokenizers[weights.tokenizer],
        reverse=weights.reverse,
        sampler=plan.parts.samplers[weights.sampler] if weights.sampler else None,
    )


def _train(plan: Cells, method: str, variant: str, seed: str) -> Strict:
    run = plan.run(method, variant)
    return TrainSpec(
        method=method,
        variant=variant,
        seed=int(seed),
        loss=run.loss,
        backbone=run.backbone,
        latents=_latents(plan, run.recipe.latents),
        teacher=run.taught,
        guidance=run.guidance if run.taught else None,
        label_dropout=0.0 if run.taught else run.recipe.label_dropout,
        train=run.train,
    )


def _bench(plan: Cells, _name: str) -> Strict:
    bench = plan.config.root.bench
    for name in bench.methods:
        require_known(name, plan.config.methods, "config/config.yaml or preset", "bench.methods")
    runs = [plan.run(name) for name in bench.methods]
    first = runs[0]
    teacher = plan.run(first.teacher) if first.teacher else None
    return BenchSpec(
        backbone=first.backbone,
        teacher=teacher.backbone if teacher else None,
        guidance=first.guidance if teacher else None,
        precision=first.train.precision,
        losses={run.method: run.loss for run in runs},
        bench=bench,
    )


def _sample(plan: Cells, method: str, variant: str, cell: str, images: str) -> Strict:
    run = plan.run(method, variant)
    name, steps = _split_cell(plan, cell)
    plan.check_sampler(run, name, steps, f"cell {method}/{variant}/{cell}")
    protocol = plan.image_sets[images]
    sampler = plan.parts.samplers[name]
    return SampleSpec(
        backbone=run.backbone,
        expanded=run.expanded,
        sampler=sampler.model_copy(update={"guidance": "none"}),
        guidance=_sampling_guidance(run, sampler),
        steps=steps,
        images=protocol.images,
        labels=protocol.labels,
        uint8=protocol.uint8,
        seed=protocol.seed,
        latents=_latents(plan, run.recipe.latents),
        image=_image(plan, run),
        decoder=plan.network(run.tokenizer.weights),
    )


def _sampling_guidance(run: Run, sampler: Sampler) -> Guidance | None:
    """Velocity normalisation belongs to distillation; sampling uses plain guidance."""
    if sampler.guidance == "none":
        return None
    if isinstance(sampler.guidance, Guidance):
        return sampler.guidance
    assert run.recipe.guidance is not None
    return run.recipe.guidance.model_copy(update={"normalise": "none"})


def _split_cell(plan: Cells, cell: str) -> tuple[str, int]:
    name, _, steps = cell.rpartition("-")
    require_known(name, plan.parts.samplers, plan.config.root.files.settings, "samplers")
    return name, int(steps)


def _reference(plan: Cells, protocol: str) -> Strict:
    entry = plan.parts.protocols[protocol]
    if entry.stored:
        raise ConfigError(
            f"{plan.config.root.files.settings}: protocols.{protocol}: its reference is published"
        )
    return ReferenceSpec(
        protocol=entry,
        extractor=plan.network(entry.weights),
        latents=_latents(plan, entry.reference_latents) if entry.reference_latents else None,
    )


def _score(plan: Cells, method: str, variant: str, seed: str, cell: str, protocol: str) -> Strict:
    name, steps = _split_cell(plan, cell)
    entry = plan.parts.protocols[protocol]
    key = CellKey(
        method=method, variant=variant, seed=int(seed), sampler=name, steps=steps, protocol=protocol
    )
    return ScoreSpec(
        cell=key,
        protocol=entry,
        extractor=plan.network(entry.weights),
        image=_image(plan, plan.run(method, variant)),
    )


def _image(plan: Cells, run: Run) -> list[int]:
    """(C, H, W) of the images of a run's data set."""
    dataset = plan.parts.datasets[plan.parts.latents[run.recipe.latents].dataset]
    return [dataset.channels, dataset.resolution, dataset.resolution]


def _table(plan: Cells, name: str) -> Strict:
    table = plan.config.tables[name]
    runs = plan.table_runs(name)
    # A run that cannot be had is, in this table, a reported number.
    shown = [row if row.id in runs else row.model_copy(update={"method": None}) for row in table.rows]
    cells = [
        RowCells(
            id=row.id,
            cells={protocol: plan.row_cells(table, row, protocol) for protocol in plan.protocols(row)},
        )
        for row in table.rows
    ]
    return TableSpec(
        name=name,
        scale=_scale(runs.values()),
        protocols=plan.table_protocols(name),
        further=plan.further(name),
        table=table.model_copy(update={"rows": shown}),
        rows=cells,
        parameters=plan.parameters(name),
        runs={
            row: RunName(
                method=run.method,
                variant=run.variant,
                loss=run.loss.name,
                seeds=plan.table_seeds(table, run),
            )
            for row, run in runs.items()
        },
    )


def _scale(runs: Iterable[Run]) -> str:
    """Scale of a result: the paper's only if every run behind it has it. Beside others, toys do not count."""
    scales = {run.recipe.scale for run in runs}
    return "/".join(sorted(scales - {"toy"} or scales)) or "paper"


def _claims(plan: Cells, _name: str) -> Strict:
    cells = plan.claim_cells()
    runs = [plan.run(key.method, key.variant) for key in cells]
    return ClaimsSpec(
        claims=plan.claims,
        protocols={claim.id: plan.claim_protocol(claim) for claim in plan.claims},
        seeds=plan.config.claim_seeds,
        first_seeds=plan.config.root.seeds,
        once=sorted({run.method for run in runs if plan.once(run)}),
        toys=[claim.id for claim in plan.claims if plan.scale(claim.left.method) == "toy"],
        scale=_scale(runs),
    )


def _report(plan: Cells, _name: str) -> Strict:
    root = plan.config.root
    names = [name for name in plan.wanted if name in plan.config.tables]
    runs = [run for name in names for run in plan.table_runs(name).values()]
    methods = {run.method: run for run in runs}
    protocols = dict.fromkeys(key for run in runs for key in run.recipe.protocols)
    tables = {name: plan.config.tables[name] for name in names}
    return ReportSpec(
        title=root.title,
        scale=_scale(runs),
        command=root.command,
        items=[
            ReportItem(
                name=name,
                kind=table.kind,
                title=table.title,
                paper=table.paper,
                caption=table.caption,
                target=f"{root.pathvars['results']}/{name}.csv",
            )
            for name, table in tables.items()
        ],
        methods={
            name: ReportMethod(
                title=run.entry.title,
                paper=run.entry.paper,
                loss=run.loss.name,
                parameters=hyperparameter_sources(run)
                if run.recipe.scale in ("paper", "toy") and not run.adopted
                else [],
            )
            for name, run in methods.items()
        },
        protocols={key: plan.parts.protocols[key] for key in protocols},
    )


_SPECS: dict[str, Callable[..., Strict]] = {
    "fetch": _fetch,
    "encode": _encode,
    "adopt": _adopt,
    "train": _train,
    "bench": _bench,
    "sample": _sample,
    "reference": _reference,
    "score": _score,
    "table": _table,
    "claims": _claims,
    "report": _report,
}
