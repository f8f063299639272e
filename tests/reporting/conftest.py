"""Hand-made specs and metrics for the end of the DAG."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reporting_helpers import ROOT, sampler_of

from fewstep.config.base import parse, read_yaml
from fewstep.config.specs import CellKey, RowCells, RunName, TableSpec
from fewstep.config.tables import Table


@pytest.fixture
def make_spec():
    """Build the spec of a table of this repository, as the plan would."""

    def make(name: str, scale: str = "paper", seeds=(0,), protocols=("decm", "common")) -> TableSpec:
        path = ROOT / "config/tables" / f"{name}.yaml"
        table = parse(Table, read_yaml(path), str(path))
        rows = [
            RowCells(
                id=row.id,
                cells={
                    protocol: [
                        [
                            CellKey(
                                method=row.method,
                                variant=row.variant,
                                seed=seed,
                                sampler=sampler_of(row, steps),
                                steps=steps,
                                protocol=protocol,
                            )
                            for seed in seeds
                        ]
                        for steps in row.steps or table.steps or []
                    ]
                    for protocol in protocols
                },
            )
            for row in table.rows
            if row.method
        ]
        runs = {
            row.id: RunName(method=row.method, variant=row.variant, loss=row.method, seeds=list(seeds))
            for row in table.rows
            if row.method
        }
        return TableSpec(name=name, scale=scale, protocols=list(protocols), table=table, rows=rows, runs=runs)

    return make


@pytest.fixture
def metric():
    """A metrics file's content for one cell."""

    def make(key: CellKey, fid: float, **changes) -> dict:
        return {
            "cell": key.model_dump(),
            "fid": fid,
            "is": None,
            "images": 50000,
            "evaluations": key.steps,
            "protocol": {},
            "reference_sha256": "0" * 64,
            "status": "trained",
            "code": None,
            "spec": "0" * 16,
        } | changes

    return make


@pytest.fixture
def write_json(tmp_path):
    """Write JSON files with running numbers as names: nothing may be learnt from a path."""

    def write(content) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(content))
        return path

    return write
