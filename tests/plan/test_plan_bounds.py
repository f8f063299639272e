"""Tables of bounds in the plan, and tables that only a preset has."""

from __future__ import annotations

import pytest
from configs import behind, copied, make_plan, raw_config, told

from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.base import merge
from fewstep.config.specs import BoundsSpec, TableSpec
from fewstep.plan.jobs import maker
from fewstep.plan.targets import check

NAME = "scenes-bounds"
RESULTS = "results/demo"


def test_what_is_behind_a_table_of_bounds(demo_plan):
    assert demo_plan.parts_of(NAME) == [f"{RESULTS}/{NAME}.csv", f"{RESULTS}/{NAME}.md"]
    assert NAME not in demo_plan.wanted  # made when asked for
    assert demo_plan.inputs("table", {"table": NAME}) == {
        "spec": [f"{RESULTS}/specs/table/{NAME}.json"],
        "metrics": [],
        "bounds": [f"{RESULTS}/references/{NAME}.json"],
    }
    assert demo_plan.inputs("bounds", {"table": NAME}) == {
        "spec": [f"{RESULTS}/specs/bounds/{NAME}.json"],
        "prompts": [demo_plan.file("record", asset="scenes")],
        "scorers": [demo_plan.model("scenes-clip"), demo_plan.model("scenes-detector")],
        "tokenizer": [demo_plan.model("scenes-autoencoder")],
    }
    found = behind(demo_plan, NAME)
    assert {job["run"] for job in found["train"]} == {
        f"scenes-{network}/base" for network in ("clip", "detector", "autoencoder")
    }
    assert "sample" not in found and "score" not in found
    assert maker(demo_plan, f"{RESULTS}/references/{NAME}.json").stage == "bounds"
    assert demo_plan.inputs("table", {"table": "table2"})["bounds"] == []


def test_specs_of_bounds(demo_plan, tmp_path):
    for stage, model in (("bounds", BoundsSpec), ("table", TableSpec)):
        spec = demo_plan.spec(stage, NAME)
        (tmp_path / "spec.json").write_text(dump(spec))
        assert read_spec(model, tmp_path / "spec.json") == spec
    bounds, table = demo_plan.spec("bounds", NAME), demo_plan.spec("table", NAME)
    assert bounds.scenes == demo_plan.config.assets["scenes"].scenes
    assert bounds.decoder == demo_plan.run("scenes-autoencoder").backbone
    assert set(bounds.scorers) == {"clip", "geneval"}
    assert (table.scale, table.protocols, table.rows, table.runs) == ("demo", ["scenes"], [], {})
    # A table of methods says nothing of bounds: its spec is what it was before there were any.
    assert "bounds" not in dump(demo_plan.spec("table", "table2"))


def test_every_number_of_the_protocol_has_bounds(demo_plan):
    table = demo_plan.config.tables[NAME]
    assert {table.metric, *table.metrics} == set(demo_plan.parts.protocols["scenes"].metrics)


def test_a_table_of_bounds_in_the_report_and_in_the_costs():
    plan = make_plan(merge(raw_config("demo"), {"targets": [NAME, "report"]}))
    report = plan.spec("report", "report")
    assert [(item.name, item.kind) for item in report.items] == [(NAME, "table")]
    assert set(report.protocols) == {"scenes"} and report.scale == "demo"
    assert plan.inputs("report", {})["parts"] == plan.parts_of(NAME)
    lines = {line.rule: line for line in plan.spec("costs", "costs").lines}
    assert [work.images for work in lines["bounds"].work] == [4 * 8 * 323] * 2 + [8 * 323] * 2


def test_bounds_of_a_table_that_has_none(demo_plan):
    with pytest.raises(ConfigError, match=r"^target .*references/table2\.json: bounds: it has none$"):
        check(demo_plan, f"{RESULTS}/references/table2.json")


ADDED = "kind: table, title: T, paper: P, metric: geneval"
PLACE = "config/mine.yaml: overrides.tables.mine"
MISTAKES = {
    "rows beside bounds": (
        f"{ADDED}, rows_of: table2, bounds: {{protocol: scenes, tokenizer: scenes-ae}}",
        f"{PLACE}: bounds make the rows of a table; leave out rows, rows_of, ranked, unit, other kinds",
    ),
    "a protocol of features": (
        f"{ADDED}, bounds: {{protocol: scenes-fid, tokenizer: scenes-ae}}",
        f"{PLACE}.bounds.protocol: 'scenes-fid' has no prompts of scenes, which can be drawn",
    ),
    "prompts that are not of scenes": (
        "kind: table, title: T, paper: P, metric: clip, bounds: {protocol: t2i-common, tokenizer: scenes-ae}",
        f"{PLACE}.bounds.protocol: 't2i-common' has no prompts of scenes, which can be drawn",
    ),
    "a metric that its protocol has not": (
        "kind: table, title: T, paper: P, metric: blip, bounds: {protocol: scenes, tokenizer: scenes-ae}",
        f"{PLACE}.bounds.protocol: protocol 'scenes' computes ",
    ),
    "no tokenizer of that name": (
        f"{ADDED}, bounds: {{protocol: scenes, tokenizer: scene-ae}}",
        f"{PLACE}.bounds.tokenizer: unknown name 'scene-ae'; did you mean 'scenes-ae'?",
    ),
    "an added table without rows": (f"{ADDED}", f"{PLACE}: no rows: give rows, rows_of or bounds"),
    "an added table with a wrong row": (
        f"{ADDED}, steps: [1], rows: [{{id: a, label: A, method: decm-t2x}}]",
        f"{PLACE}.rows.a.method: unknown name 'decm-t2x'; did you mean 'decm-t2i'?",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_where_it_was_made(mistake, tmp_path):
    content, line = MISTAKES[mistake]
    preset = f"based_on: config/demo.yaml\noverrides: {{tables: {{mine: {{{content}}}}}}}\n"
    (found,) = told(copied(tmp_path), preset)
    assert found.startswith(line)


def test_a_name_of_an_added_table_that_is_another_target(tmp_path):
    preset = f"overrides: {{tables: {{plan: {{{ADDED}, steps: [1], rows: [{{id: a, label: A}}]}}}}}}\n"
    (line,) = told(copied(tmp_path), f"based_on: config/demo.yaml\n{preset}")
    assert line.endswith("the file's name is that of another target; rename it")


def test_a_preset_adds_a_table_of_methods():
    """With the rows of another; it is made like those of the folder."""
    mine = {"kind": "table", "title": "T", "paper": "P", "metric": "geneval", "steps": [4]}
    tables = {"mine": {**mine, "rows_of": "twinflow-table1"}}
    plan = make_plan(merge(raw_config("demo"), {"overrides": {"tables": tables}, "targets": ["mine"]}))
    assert plan.wanted == ["mine"] and plan.targets() == [f"{RESULTS}/mine.csv", f"{RESULTS}/mine.md"]
    assert {key.steps for key in plan.tables["mine"].all_cells} == {4}
    assert {key.method for key in plan.tables["mine"].all_cells} >= {"decm-t2i", "twinflow-t2i"}
