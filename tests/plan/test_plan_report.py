"""What the page leads to: of every number, curve and picture the files that the rules write."""

from __future__ import annotations

import posixpath

import pytest
from configs import make_plan, raw_config

from fewstep.config.base import merge
from fewstep.plan import Plan
from fewstep.plan.paths import LOGS

BY_NAME = ["scenes-bounds", "figure7"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    raw = raw_config("demo")
    names = list(make_plan(merge(raw, {"targets": "all"})).wanted)
    return make_plan(merge(raw, {"targets": [*names, *BY_NAME]}))


@pytest.fixture(scope="module")
def page(plan):
    return plan.spec("report", "report")


def resolved(path: str) -> str:
    return posixpath.normpath(posixpath.join("results/demo", path))


def test_each_row_leads_to_its_files(plan, page):
    for item in page.items:
        entry = plan.tables[item.name]
        rows = {row.id: row for row in entry.table.rows}
        assert list(item.cells) == ([""] if entry.table.bounds else list(entry.runs)), item.name
        for name, columns in item.cells.items():
            steps = rows[name].steps or entry.table.steps if name else []
            count = len(steps) if steps and item.kind != "training" else 1
            assert len(columns) == count and (all(columns) or item.kind == "grid"), (item.name, name)


def test_results_are_what_a_table_or_figure_is_made_of(plan, page):
    """Its metrics files, its curves, or its bounds, and all of them."""
    for item in page.items:
        names = {name for columns in item.cells.values() for cells in columns for name in cells}
        found = {resolved(page.sources[name].result) for name in names if page.sources[name].result}
        stage = "table" if item.kind == "table" else "figure"
        inputs = plan.inputs(stage, {"table": item.name})
        wanted = {file for key in ("metrics", "curves", "bounds") for file in inputs.get(key, [])}
        assert found == wanted, item.name
        protocols = {name.rpartition("/")[2] for name in names}
        assert protocols.issuperset(item.extra_metrics.values()), item.name


def test_claims_lead_to_all_their_numbers(plan, page):
    names = {name for names in page.claims.values() for name in names}
    found = {resolved(page.sources[name].result) for name in names}
    assert found == set(plan.inputs("claims", {"claims": "claims"})["metrics"])
    assert list(page.claims) == [entry.claim.id for entry in plan.claims_of("claims")]
    assert (
        make_plan({**raw_config("demo"), "targets": ["table1", "report"]}).spec("report", "report").claims
        == {}
    )


def test_specs_and_logs_are_those_of_the_rules(plan, page):
    """Also of samples, which are gone once a picture is made of them."""
    stages = set()
    for item in page.items:
        first = next((name for columns in item.cells.values() for cells in columns for name in cells), None)
        if first is None:
            continue
        files = page.sources[first]
        spec = resolved(files.spec).removeprefix("results/demo/specs/").removesuffix(".json")
        stage, _, name = spec.partition("/")
        assert plan.spec(stage, name)
        assert resolved(files.log).startswith(f"{plan.config.root.pathvars['logs']}/{stage}/")
        stages.add(stage)
    assert stages == LOGS.keys()


def test_the_time_of_every_training_behind_the_page_counts(plan, page):
    """Those of autoencoders and feature extractors, too, and of every seed."""
    times = {resolved(path) for path in page.times}
    assert len(times) == len(page.times)
    assert {
        f"results/demo/{run}/time.json" for run in ("digits-classifier/base/0", "digits-autoencoder/base/0")
    } <= times
    shown = {resolved(each.time) for method in page.methods.values() for each in method.trainings}
    assert shown < times
