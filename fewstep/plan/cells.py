"""Cells: runs with a sampler, a number of steps and a protocol; and the tables and claims made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config.backbones import FlowNetwork
from ..config.base import MOST_STEPS, ConfigError, Mistakes, nearest, require_known
from ..config.load import Config
from ..config.pipelines import SAMPLER
from ..config.settings import Guidance
from ..config.specs import CellKey
from ..config.tables import MEASURED, Bounds, CellName, Claim, Row, Table
from ..config.text import PromptProtocol
from ..methods import logs
from .runs import BASE, Run, pipeline_at

PICTURES = ("grid", "samples", "scatter")
"""Kinds of figures that show samples, not metrics."""


LOGGED = ("loss", "grad_norm", "lr")
"""Columns that the curve of every training has."""


@dataclass(frozen=True)
class ResolvedTable:
    """A table or figure and all that is behind it."""

    table: Table
    runs: dict[str, Run]
    """Row id -> run, for the rows that are more than a reported number."""
    cells: dict[str, dict[str, list[list[CellKey]]]]
    """Row id -> protocol -> for each number of steps, one cell for each seed."""
    seeds: dict[str, list[int]]
    """Row id -> seeds of its run."""
    protocols: list[str] = field(default_factory=list)
    """Of the runs, that compute the table's metric: first the paper's own, then the others."""
    extra_metrics: dict[str, str] = field(default_factory=dict)
    """Metric beside the table's own -> its protocol: the first that has it, if possible for every run."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Row id -> value of the parameter that a sweep goes through, of the runs that have it."""

    @property
    def all_cells(self) -> list[CellKey]:
        """Each once."""
        rows = (columns for protocols in self.cells.values() for columns in protocols.values())
        return list(dict.fromkeys(key for columns in rows for seeds in columns for key in seeds))

    @property
    def picture_cells(self) -> list[CellKey]:
        """Cells whose samples a figure shows: those of a grid, or of each row's first seed and protocol."""
        if self.table.kind == "grid":
            return self.all_cells
        if self.table.kind not in PICTURES:
            return []
        firsts = (next(iter(protocols.values()), []) for protocols in self.cells.values())
        return list(dict.fromkeys(seeds[0] for columns in firsts for seeds in columns))


@dataclass(frozen=True)
class ResolvedClaim:
    claim: Claim
    cells: list[list[CellKey]]
    """For each seed, the left cell and then the right ones."""


@dataclass(frozen=True)
class Resolver:
    """Makes tables and claims of runs; mistakes are collected, and what has them is left out."""

    config: Config
    runs: Mapping[str, Run]
    variants: Collection[tuple[str, str]]
    """The (method, variant) that tables define, beside the base of each method."""
    shared: set[str]
    """Methods that others build on, of which there is one training."""
    mistakes: Mistakes

    def available(self, run: Run) -> bool:
        """Whether the run's weights may be had: with ``weights: released`` nothing is trained."""
        if run.only_pipeline or run.pipeline:
            return run.pipeline is not None
        passed: list[str] = []
        while run.entry.reembed is not None and not run.adopted:
            passed.append(run.name)
            name = f"{run.entry.reembed.of}/{BASE}"
            if name in passed or name not in self.runs:  # told already
                return False
            run = self.runs[name]
        return run.adopted or self.config.root.weights == "trained"

    def single(self, run: Run) -> bool:
        """Whether a run has one seed, 0: published weights, and what others build on, exist once."""
        return run.maker != "train" or run.method in self.shared

    def table(self, name: str) -> ResolvedTable:
        """Resolve a table; its mistakes leave parts of it out."""
        config = self.config
        table, where = config.tables[name], f"{config.root.files.tables}/{name}.yaml"
        cells: dict[str, dict[str, list[list[CellKey]]]] = {row.id: {} for row in table.rows}
        runs, seeds, samplers = {}, {}, {}
        for row in table.rows:
            run = self._run(row, f"{where}: rows.{row.id}") if row.method is not None else None
            if run is None or (run.only_pipeline and not self.available(run)):
                continue
            samplers[row.id] = self._samplers(table, row, run, f"{where}: rows.{row.id}")
            if not self.available(run) or not self._asked(row):
                continue
            seeds[row.id] = [0] if self.single(run) else table.seeds or config.root.seeds
            # Published weights come without the curve of their training.
            if not (table.kind == "training" and run.maker != "train"):
                runs[row.id] = run
        found = ResolvedTable(table, runs, cells, seeds)
        if table.bounds is not None:
            with self.mistakes.caught():
                self._check_bounds(table, table.bounds, where)
            found.protocols.append(table.bounds.protocol)
            found.extra_metrics.update(dict.fromkeys(table.metrics, table.bounds.protocol))
            return found
        scales = {run.recipe.scale for run in runs.values()}
        if "toy" in scales and len(scales) > 1:
            self.mistakes.add(f"{where}: rows: toys stand beside {', '.join(sorted(scales - {'toy'}))}")
        with self.mistakes.caught():
            self._check_metric(found, where)
        with self.mistakes.caught():
            self._check_classes(found, where)
        with self.mistakes.caught():
            found.extra_metrics.update(self._extra_metrics(found, where))
        found.protocols.extend(
            dict.fromkeys(key for run in runs.values() for key in self._protocols(table, run))
        )
        for row_id, run in runs.items():
            for protocol in run.recipe.protocols:
                if protocol in (*found.protocols, *found.extra_metrics.values()):
                    cells[row_id][protocol] = [
                        [run.cell(seed, sampler, steps, protocol) for seed in seeds[row_id]]
                        for steps, sampler in samplers[row_id]
                    ]
        with self.mistakes.caught():
            found.parameters.update(_parameters(found, where))
        return found

    def claim(self, claim: Claim) -> ResolvedClaim | None:
        """A claim of which every cell can be had."""
        where = f"{self.config.root.files.claims}: {claim.id}"
        sides = [claim.left, *claim.right]
        bases = [self.runs.get(f"{cell.method}/{BASE}") for cell in sides]
        scales = {run.recipe.scale for run in bases if run is not None}
        if "own" in scales or (claim.scales and not scales <= set(claim.scales)):
            return None
        runs = [run for run in (self._run(cell, where) for cell in sides) if run is not None]
        if len(runs) < len(sides):
            return None
        if len({run.recipe.scale == "toy" for run in runs}) > 1:
            self.mistakes.add(f"{where}: toys cannot be compared with others")
        for cell, run in zip(sides, runs, strict=True):
            with self.mistakes.caught():
                check_sampler(self.config, run, cell.sampler, cell.steps, where)
        if not all(map(self.available, runs)):
            return None
        with self.mistakes.caught():
            protocol = self._having(claim.metric, shared_protocols(runs, where), f"{where}.metric")[0]
            asked = {"first": self.config.root.seeds, "all": self.config.claim_seeds}
            wanted = claim.seeds if isinstance(claim.seeds, list) else asked[claim.seeds]
            single = [self.single(run) for run in runs]
            return ResolvedClaim(
                claim,
                [
                    [
                        run.cell(0 if one else seed, cell.sampler, cell.steps, protocol)
                        for cell, run, one in zip(sides, runs, single, strict=True)
                    ]
                    # With every cell trained once (say, the teacher against itself) there is one seed.
                    for seed in ([0] if all(single) else wanted)
                ],
            )
        return None

    def _asked(self, row: Row) -> bool:
        """Whether the row is made, and not reported only."""
        rows = self.config.root.rows
        return not row.by_name or rows == "all" or row.id in rows

    def _run(self, named: Row | CellName, where: str) -> Run | None:
        """None if the run has mistakes."""
        assert named.method is not None
        known = [variant for method, variant in self.variants if method == named.method]
        file, _, key = where.partition(": ")
        with self.mistakes.caught():
            require_known(named.variant, known, file, f"{key}.variant")
        return self.runs.get(f"{named.method}/{named.variant}")

    def _samplers(self, table: Table, row: Row, run: Run, where: str) -> list[tuple[int, str]]:
        """Numbers of steps of a row, and the sampler for each: its own, or the method's."""
        found = []
        named = (row.sampler if not run.pipeline else None) or run.samplers
        for steps in row.steps or table.steps or []:
            sampler = named if isinstance(named, str) else named.get(steps, named.get("default"))
            if sampler is None:
                base = self.runs[f"{run.method}/{BASE}"]
                self.mistakes.add(f"{base.place}.samplers: none for {steps} steps, and no default")
                continue
            with self.mistakes.caught():
                check_sampler(self.config, run, sampler, steps, where)
                found.append((steps, sampler))
        return found

    def _protocols(self, table: Table, run: Run) -> list[str]:
        """Those that evaluate a run for a table: of measured ones, those that compute its metric."""
        names = run.recipe.protocols
        if table.kind in (*PICTURES, "training"):
            return names
        return [name for name in names if table.metric in self.config.parts.protocols[name].metrics]

    def _having(self, metric: str, protocols: Sequence[str], where: str) -> list[str]:
        """The protocols that compute a metric, of which there must be one."""
        entries = {name: self.config.parts.protocols[name] for name in protocols}
        having = [name for name, entry in entries.items() if metric in entry.metrics]
        if not having:
            computed = "; ".join(f"{name!r} computes {', '.join(e.metrics)}" for name, e in entries.items())
            raise ConfigError(
                f"{where}: protocol {computed}, not {metric!r}; choose one of these, or add it to the "
                "protocol's metrics"
            )
        return having

    def _check_metric(self, found: ResolvedTable, where: str) -> None:
        """Refuse a metric that no metrics file, or no curve of a training, will have."""
        file, metric = f"{where}: metric", found.table.metric
        if found.table.kind != "training":
            require_known(metric, MEASURED, where, "metric")
            if found.table.kind not in PICTURES:
                for run in found.runs.values():
                    with self.mistakes.caught():
                        self._having(metric, run.recipe.protocols, file)
            return
        losses = {run.loss.name for run in found.runs.values()}
        if found.runs and metric not in LOGGED and not any(logs(loss, metric) for loss in losses):
            raise ConfigError(f"{file}: no training here logs {metric!r}{nearest(metric, LOGGED)}")

    def _check_bounds(self, table: Table, bounds: Bounds, where: str) -> None:
        """Refuse bounds of what no scenes are drawn for, or that the protocol does not compute."""
        parts = self.config.parts
        protocol = parts.protocols[bounds.protocol]
        prompts = parts.prompts[protocol.prompts] if isinstance(protocol, PromptProtocol) else None
        if prompts is None or self.config.assets[prompts.asset].scenes is None:
            raise ConfigError(
                f"{where}: bounds.protocol: {bounds.protocol!r} has no prompts of scenes, which can be drawn"
            )
        for metric in (table.metric, *table.metrics):
            self._having(metric, [bounds.protocol], f"{where}: bounds.protocol")

    def _check_classes(self, found: ResolvedTable, where: str) -> None:
        """Refuse pictures of classes, or of prompts, that there are not."""
        if found.table.kind not in ("grid", "samples"):
            return
        parts = self.config.parts
        for run in found.runs.values():
            classes = parts.datasets[parts.latents[run.recipe.latents].dataset].classes
            protocol = parts.protocols[run.recipe.protocols[0]] if run.recipe.protocols else None
            kind = "classes"
            if isinstance(protocol, PromptProtocol):
                classes, kind = parts.prompts[protocol.prompts].prompts, "prompts"
            beyond = [label for label in found.table.classes or [] if label >= classes]
            if beyond:
                raise ConfigError(
                    f"{where}: classes: {beyond[0]}, but {run.method} has the {kind} 0 to {classes - 1}"
                )

    def _extra_metrics(self, found: ResolvedTable, where: str) -> dict[str, str]:
        chosen: dict[str, str] = {}
        runs = found.runs.values()
        protocols = list(dict.fromkeys(key for run in runs for key in run.recipe.protocols))
        for metric in found.table.metrics if runs else []:
            having = self._having(metric, protocols, f"{where}: metrics")
            shared = [key for key in having if all(key in run.recipe.protocols for run in runs)]
            chosen[metric] = (shared or having)[0]
        return chosen


def _parameters(found: ResolvedTable, where: str) -> dict[str, float]:
    parameter = found.table.parameter
    if parameter is None:
        return {}
    values = {}
    for row, run in found.runs.items():
        value: Any = {"loss": run.loss.model_dump()}
        for key in parameter.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            values[row] = float(value)
    if found.runs and len(values) < 2:
        raise ConfigError(
            f"{where}: parameter: {parameter!r} is a number in {len(values)} of the rows' losses; "
            "a sweep needs two"
        )
    return values


def shared_protocols(runs: Iterable[Run], where: str) -> list[str]:
    """The protocols under which runs can be compared: those that all their recipes name."""
    named = [run.recipe.protocols for run in runs]
    shared = [protocol for protocol in named[0] if all(protocol in others for others in named)]
    if not shared:
        raise ConfigError(
            f"{where}: no protocol evaluates all of its cells; "
            f"their recipes name {'; '.join(', '.join(protocols) or 'none' for protocols in named)}"
        )
    return shared


def check_sampler(config: Config, run: Run, name: str, steps: int, where: str) -> None:
    """Refuse a number of steps that a sampler cannot do, and a sampler that the run's network cannot take."""
    require_known(name, config.parts.samplers, config.root.files.settings, "samplers")
    sampler = config.parts.samplers[name]
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"{where}: steps {steps} must be 1 to {MOST_STEPS}")
    if not run.recipe.protocols:
        raise ConfigError(f"{where}: recipe {run.entry.recipe} names no protocol to evaluate by")
    if sampler.kind == "pipeline":
        if run.pipeline is None:
            raise ConfigError(
                f"{where}: sampler {name!r} needs a released pipeline, which {run.name} has only with "
                "weights=released, at the paper's scale"
            )
        pipeline_at(run.pipeline, steps, run.place)
        return
    if run.only_pipeline:
        raise ConfigError(f"{where}: {run.name} is a pipeline of diffusers; its sampler is {SAMPLER!r}")
    if sampler.kind == "mix" and steps < 2:
        raise ConfigError(f"{where}: sampler {name!r} needs at least 2 steps, not {steps}")
    if sampler.times is not None and steps != len(sampler.times):
        raise ConfigError(
            f"{where}: sampler {name!r} names the times of {len(sampler.times)} steps, not of {steps}"
        )
    scales = sampler.scale_count
    own = run.backbone.scale_count if isinstance(run.backbone, FlowNetwork) else 1
    if scales != own:
        raise ConfigError(
            f"{where}: sampler {name!r} is for scales: {scales}, but backbone {run.network} has {own}"
        )
    if sampler.pyramid is not None and steps != sum(sampler.pyramid.steps):
        raise ConfigError(
            f"{where}: sampler {name!r} takes {sum(sampler.pyramid.steps)} steps (pyramid.steps), not {steps}"
        )
    if sampler.guidance == "recipe" and run.recipe.guidance is None:
        raise ConfigError(f"{where}: sampler {name!r}: recipe {run.entry.recipe} has no guidance")
    if sampler.pyramid and sampler.guidance == "recipe" and run.guidance and run.guidance.interval != [0, 1]:
        raise ConfigError(
            f"{where}: sampler {name!r} guides all scales at all times; leave guidance.interval of recipe "
            f"{run.entry.recipe} at [0, 1]"
        )
    learned = run.learned_guidance
    scale = sampler.guidance.scale if isinstance(sampler.guidance, Guidance) else sampler.guidance
    if learned != 1 and scale not in ("none", 1):
        raise ConfigError(
            f"{where}: sampler {name!r} guides, but {run.name} has learned its teacher's guidance of scale "
            f"{learned:g}; use one without"
        )
    channels = sampler.guidance.channels if isinstance(sampler.guidance, Guidance) else None
    if (channels or 0) > run.tokenizer.shape[0]:
        raise ConfigError(
            f"{where}: sampler {name!r} guides {channels} channels, "
            f"but the latents have {run.tokenizer.shape[0]}"
        )
    if isinstance(run.backbone, FlowNetwork) and not run.backbone.samples_in(sampler.kind, steps):
        raise ConfigError(
            f"{where}: sampler {name!r} in {steps} steps: backbone {run.network} is not told the times; "
            "use kind: cm or euler in one step"
        )
    inner = sampler.ucgm is not None and sampler.ucgm.condition == "next"
    jumps = inner or sampler.kind in ("mix", "jump")
    # Without a target time, a flow map only reaches the data.
    if jumps and not (isinstance(run.backbone, FlowNetwork) and run.backbone.target_time):
        raise ConfigError(
            f"{where}: sampler {name!r} jumps to inner times, which needs a backbone with "
            "target_time: true; use kind: euler or cm"
        )
