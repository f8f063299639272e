"""Cells: runs with a sampler, a number of steps and a protocol, and which of them a target needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.base import ConfigError
from ..config.settings import Protocol
from ..config.specs import CellKey
from ..config.tables import Row, Table
from .runs import Run, Runs


class Cells(Runs):
    def __init__(self, raw: Mapping[str, Any], base: Path = Path()):
        super().__init__(raw, base)
        self._check()

    def sampler_of(self, row: Row, nfe: int) -> str:
        """The row's own sampler, or the method's for this number of steps."""
        assert row.method is not None
        if isinstance(row.sampler, str):
            return row.sampler
        samplers = row.sampler or self.config.methods[row.method].samplers
        sampler = samplers.get(nfe, samplers.get("default"))
        if sampler is None:
            files = self.config.root.files
            raise ConfigError(f"{files.methods}: {row.method}.samplers: none for {nfe} steps, and no default")
        return sampler

    def protocols(self, row: Row) -> list[str]:
        return [] if row.method is None else self.run(row.method, row.variant).setting.protocols

    def row_cells(self, table: Table, row: Row, protocol: str) -> list[list[CellKey]]:
        """Cells of a row: for each NFE, one for each seed."""
        if row.method is None:
            return []
        run = self.run(row.method, row.variant)
        seeds = self.seeds(run, self.config.root.seeds)
        return [
            [self._key(run, seed, self.sampler_of(row, nfe), nfe, protocol) for seed in seeds]
            for nfe in row.nfe or table.nfe or []
        ]

    def table_runs(self, name: str) -> dict[str, Run]:
        """Row id -> run, for the rows that are more than a reported number."""
        rows = self.config.tables[name].rows
        return {row.id: self.run(row.method, row.variant) for row in rows if row.method}

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

    @cached_property
    def claim_protocol(self) -> str:
        """The one protocol under which the claims compare cells: the first of their settings."""
        found = {
            self.run(cell.method, cell.variant).setting.protocols[0]
            for claim in self.config.claims
            for cell in [claim.left, *claim.right]
        }
        if len(found) > 1:
            raise ConfigError(f"{self.config.root.files.claims}: claims mix protocols {sorted(found)}")
        return found.pop() if found else ""

    def claim_cells(self) -> list[CellKey]:
        keys = []
        for claim in self.config.claims:
            wanted = self.config.root.seeds if claim.seeds == "first" else self.config.claim_seeds
            for cell in [claim.left, *claim.right]:
                run = self.run(cell.method, cell.variant)
                for seed in self.seeds(run, wanted):
                    keys.append(self._key(run, seed, cell.sampler, cell.nfe, self.claim_protocol))
        return _unique(keys)

    def image_set(self, protocol: str) -> str:
        """Name of the images that a protocol wants; protocols that want the same share them."""
        entry = self.parts.protocols[protocol]
        return f"{entry.labels}-{entry.images}-{entry.uint8}-{entry.seed}"

    @cached_property
    def image_sets(self) -> dict[str, Protocol]:
        return {self.image_set(name): protocol for name, protocol in self.parts.protocols.items()}

    def check_sampler(self, run: Run, name: str, nfe: int, where: str) -> None:
        """Refuse a number of steps that a sampler cannot do."""
        sampler = self.parts.samplers[name]
        if nfe < 1:
            raise ConfigError(f"{where}: nfe {nfe} is not positive")
        if sampler.kind == "mix" and nfe < 2:
            raise ConfigError(f"{where}: sampler {name!r} needs at least 2 steps, not {nfe}")
        if sampler.guidance == "setting" and run.setting.guidance is None:
            raise ConfigError(f"{where}: sampler {name!r}: setting {run.entry.setting} has no guidance")
        if not run.setting.protocols:
            raise ConfigError(f"{where}: setting {run.entry.setting} names no protocol to evaluate by")

    def _key(self, run: Run, seed: int, sampler: str, nfe: int, protocol: str) -> CellKey:
        return CellKey(
            method=run.method, variant=run.variant, seed=seed, sampler=sampler, nfe=nfe, protocol=protocol
        )

    def _check(self) -> None:
        """Fail now on what would otherwise show only when a cell is asked for."""
        files = self.config.root.files
        for name, row in self.rows():
            if row.method is None:
                continue
            run = self.run(row.method, row.variant)
            for nfe in row.nfe or self.config.tables[name].nfe or []:
                where = f"{files.tables}/{name}.yaml: rows.{row.id}"
                self.check_sampler(run, self.sampler_of(row, nfe), nfe, where)
        for claim in self.config.claims:
            for cell in [claim.left, *claim.right]:
                run = self.run(cell.method, cell.variant)
                self.check_sampler(run, cell.sampler, cell.nfe, f"{files.claims}: {claim.id}")


def _unique(keys: Iterable[CellKey]) -> list[CellKey]:
    return list(dict.fromkeys(keys))
