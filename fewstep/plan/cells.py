"""Cells: runs with a sampler, a number of steps and a protocol, and which of them a target needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.base import ConfigError, Strict
from ..config.settings import Protocol
from ..config.specs import CellKey
from ..config.tables import Claim, Row, Table
from . import marks
from .checks import check_jump, check_prediction
from .runs import Run, Runs


class Cells(Runs):
    def __init__(self, raw: Mapping[str, Any], base: Path = Path()):
        super().__init__(raw, base)
        self._check()

    def sampler_of(self, row: Row, steps: int) -> str:
        """The row's own sampler, or the method's for this number of steps."""
        assert row.method is not None
        if isinstance(row.sampler, str):
            return row.sampler
        samplers = row.sampler or self.config.methods[row.method].samplers
        sampler = samplers.get(steps, samplers.get("default"))
        if sampler is None:
            file = self.config.method_files[row.method]
            raise ConfigError(f"{file}: {row.method}.samplers: none for {steps} steps, and no default")
        return sampler

    def run_of(self, row: Row) -> Run | None:
        """The run behind a row; None where the row is reported only."""
        if row.method is None:
            return None
        run = self.run(row.method, row.variant)
        return run if self.available(run) else None

    def protocols(self, row: Row) -> list[str]:
        run = self.run_of(row)
        return run.recipe.protocols if run else []

    def row_cells(self, table: Table, row: Row, protocol: str) -> list[list[CellKey]]:
        """Cells of a row: for each NFE, one for each seed."""
        run = self.run_of(row)
        if run is None:
            return []
        seeds = self.table_seeds(table, run)
        return [
            [self._key(run, seed, self.sampler_of(row, steps), steps, protocol) for seed in seeds]
            for steps in row.steps or table.steps or []
        ]

    def table_seeds(self, table: Table, run: Run) -> list[int]:
        """Seeds of a run in a table."""
        return self.seeds(run, table.seeds or self.config.root.seeds)

    def table_runs(self, name: str) -> dict[str, Run]:
        """Row id -> run, for the rows that are more than a reported number."""
        table = self.config.tables[name]
        runs = {row.id: self.run_of(row) for row in table.rows}
        # Published weights come without the curve of their training.
        curves = table.kind == "training"
        return {row: run for row, run in runs.items() if run and not (curves and run.adopted)}

    def table_cells(self, name: str) -> list[CellKey]:
        """Every cell behind a table or figure, each once."""
        table = self.config.tables[name]
        return _unique(
            key
            for row in table.rows
            for protocol in self.protocols(row)
            for seeds in self.row_cells(table, row, protocol)
            for key in seeds
        )

    def scale(self, method: str) -> str:
        return self.run(method).recipe.scale

    def picture_cells(self, name: str) -> list[CellKey]:
        """Cells whose samples a figure shows: those of a grid, or of each row's first seed."""
        table = self.config.tables[name]
        if table.kind == "grid":
            return self.table_cells(name)
        if table.kind != "scatter":
            return []
        return _unique(
            self.row_cells(table, row, protocol)[0][0]
            for row in table.rows
            for protocol in self.protocols(row)[:1]
        )

    def parameters(self, name: str) -> dict[str, float]:
        """Row id -> value of the parameter that a sweep goes through, of the runs that have it.

        Raises:
            ConfigError: fewer than two have it, or it is not a number.
        """
        table = self.config.tables[name]
        if table.parameter is None:
            return {}
        found = {}
        for row, run in self.table_runs(name).items():
            values = {"loss": run.loss.model_dump()}
            value: Any = values
            for key in table.parameter.split("."):
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                found[row] = float(value)
        if self.table_runs(name) and len(found) < 2:
            raise ConfigError(
                f"{self.config.root.files.tables}/{name}.yaml: parameter: {table.parameter!r} is a number in "
                f"{len(found)} of the rows' losses; a sweep needs two"
            )
        return found

    def table_protocols(self, name: str) -> list[str]:
        """Protocols of a table's runs: first the paper's own, then the others."""
        runs = self.table_runs(name).values()
        return list(dict.fromkeys(key for run in runs for key in run.recipe.protocols))

    def further(self, name: str) -> dict[str, str]:
        """Further metric of a table -> its protocol: the first that has it, if possible for every run.

        Raises:
            ConfigError: no protocol of the table's runs computes a metric.
        """
        table, runs = self.config.tables[name], self.table_runs(name).values()
        found = {}
        for metric in table.metrics if runs else []:
            having = [
                key for key in self.table_protocols(name) if metric in self.parts.protocols[key].metrics
            ]
            shared = [key for key in having if all(key in run.recipe.protocols for run in runs)]
            if not having:
                names = ", ".join(self.table_protocols(name))
                raise ConfigError(
                    f"{self.config.root.files.tables}/{name}.yaml: metrics: none of the protocols {names} "
                    f"computes {metric!r}; add it to the metrics of one"
                )
            found[metric] = (shared or having)[0]
        return found

    @cached_property
    def wanted(self) -> list[str]:
        """The default targets; those with nothing behind them are left out."""
        targets = self.config.root.targets
        if targets == "all":
            named = [name for name, table in self.config.tables.items() if not table.by_name]
            targets = [*named, "claims", "report"]
        return [target for target in targets if self._filled(target)]

    def _filled(self, target: str) -> bool:
        if target == "claims":
            return bool(self.claims)
        if target == "report":
            return True
        table = self.config.tables.get(target)
        return table is not None and (table.kind == "table" or bool(self.table_runs(target)))

    @cached_property
    def claims(self) -> list[Claim]:
        """The claims of which every cell can be had."""
        return [
            claim
            for claim in self.config.claims
            if all(self.available(self.run(cell.method, cell.variant)) for cell in [claim.left, *claim.right])
        ]

    def claim_protocol(self, claim: Claim) -> str:
        """The protocol under which a claim compares its cells: the first that all their recipes name."""
        runs = [self.run(cell.method, cell.variant) for cell in [claim.left, *claim.right]]
        named = [run.recipe.protocols for run in runs]
        shared = [protocol for protocol in named[0] if all(protocol in others for others in named)]
        if not shared:
            raise ConfigError(
                f"{self.config.root.files.claims}: {claim.id}: no protocol evaluates all of its cells; "
                f"their recipes name {'; '.join(', '.join(protocols) or 'none' for protocols in named)}"
            )
        return shared[0]

    def claim_seeds(self, claim: Claim) -> list[int]:
        if isinstance(claim.seeds, list):
            return claim.seeds
        return self.config.root.seeds if claim.seeds == "first" else self.config.claim_seeds

    def claim_cells(self) -> list[CellKey]:
        keys = []
        for claim in self.claims:
            protocol = self.claim_protocol(claim)
            for cell in [claim.left, *claim.right]:
                run = self.run(cell.method, cell.variant)
                for seed in self.seeds(run, self.claim_seeds(claim)):
                    keys.append(self._key(run, seed, cell.sampler, cell.steps, protocol))
        return _unique(keys)

    def image_set(self, protocol: str) -> str:
        """Name of the images that a protocol wants; protocols that want the same share them."""
        entry = self.parts.protocols[protocol]
        return f"{entry.labels}-{entry.images}-{entry.uint8}-{entry.seed}"

    @cached_property
    def image_sets(self) -> dict[str, Protocol]:
        return {self.image_set(name): protocol for name, protocol in self.parts.protocols.items()}

    def check_sampler(self, run: Run, name: str, steps: int, where: str) -> None:
        """Refuse a number of steps that a sampler cannot do."""
        sampler = self.parts.samplers[name]
        if steps < 1:
            raise ConfigError(f"{where}: steps {steps} is not positive")
        if sampler.kind == "mix" and steps < 2:
            raise ConfigError(f"{where}: sampler {name!r} needs at least 2 steps, not {steps}")
        if sampler.times is not None and steps != len(sampler.times):
            raise ConfigError(
                f"{where}: sampler {name!r} names the times of {len(sampler.times)} steps, not of {steps}"
            )
        if sampler.guidance == "recipe" and run.recipe.guidance is None:
            raise ConfigError(f"{where}: sampler {name!r}: recipe {run.entry.recipe} has no guidance")
        inner = sampler.ucgm is not None and sampler.ucgm.condition == "next"
        if inner or sampler.kind in ("mix", "jump"):
            check_jump(run.backbone, name, where)
        if not run.recipe.protocols:
            raise ConfigError(f"{where}: recipe {run.entry.recipe} names no protocol to evaluate by")

    def _key(self, run: Run, seed: int, sampler: str, steps: int, protocol: str) -> CellKey:
        return CellKey(
            method=run.method, variant=run.variant, seed=seed, sampler=sampler, steps=steps, protocol=protocol
        )

    def _check(self) -> None:
        """Fail now on what would otherwise show only when a cell, or the report, is asked for."""
        files = self.config.root.files
        for name, recipe in self.parts.recipes.items():
            own: dict[str, Strict | None] = {"train": recipe.train, "guidance": recipe.guidance}
            marks.check(recipe.provenance, own, files.settings, f"recipes.{name}.provenance")
        for name in self.config.methods:
            run = self.run(name)
            own = {"loss": run.loss, "train": run.train, "guidance": run.guidance}
            marks.check(run.entry.provenance, own, self.config.method_files[name], f"{name}.provenance")
            above = self.run(run.recipe.teacher).backbone if run.taught and run.recipe.teacher else None
            where = f"{self.config.method_files[name]}: {name}.backbone"
            check_prediction(run.backbone, run.adopted, above, where)
        for name in self.config.tables:
            scales = {run.recipe.scale for run in self.table_runs(name).values()}
            if "toy" in scales and len(scales) > 1:
                raise ConfigError(
                    f"{files.tables}/{name}.yaml: rows: toys stand beside {', '.join(scales - {'toy'})}"
                )
            self.further(name)
            self.parameters(name)
        for name, row in self.rows():
            if row.method is None:
                continue
            run = self.run(row.method, row.variant)
            for steps in row.steps or self.config.tables[name].steps or []:
                where = f"{files.tables}/{name}.yaml: rows.{row.id}"
                self.check_sampler(run, self.sampler_of(row, steps), steps, where)
        for claim in self.config.claims:
            if len({self.scale(cell.method) == "toy" for cell in [claim.left, *claim.right]}) > 1:
                raise ConfigError(f"{files.claims}: {claim.id}: toys cannot be compared with others")
            for cell in [claim.left, *claim.right]:
                run = self.run(cell.method, cell.variant)
                self.check_sampler(run, cell.sampler, cell.steps, f"{files.claims}: {claim.id}")


def _unique(keys: Iterable[CellKey]) -> list[CellKey]:
    return list(dict.fromkeys(keys))
