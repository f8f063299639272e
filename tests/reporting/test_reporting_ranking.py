"""Many methods side by side: order, ranks, relative costs, and pictures that name every row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from configs import make_plan, raw_config
from PIL import Image
from reporting_helpers import ROOT

from fewstep import figure as figure_stage
from fewstep import table as table_stage
from fewstep.config import dump
from fewstep.config.base import ConfigError, parse, read_yaml
from fewstep.config.tables import Table
from fewstep.reporting.figures import ranking, style
from fewstep.reporting.markdown import table_markdown
from fewstep.reporting.rows import FilledTable, fill_table, read_table

VALUES = {"teacher": 6.0, "flow-matching": 9.0, "decm": 1.0, "meanflow": 2.0, "scm": 1.5}
FLOPS = {"flow-matching": 5e9, "decm": 1.4e10, "meanflow": 7e9, "scm": 7.5e9}


def spec_of(make_spec, kind="table", **changes):
    """The table of this repository, under another kind, as the configuration would share its rows."""
    spec = make_spec("zoo", scale="demo", protocols=("digits",))
    table = spec.table.model_copy(update={"kind": kind, **changes})
    return spec.model_copy(update={"table": table})


def measured(spec, metric):
    """Metrics of some rows; a longer sampling is better, except for DE-CM's."""
    found = {}
    for row in spec.rows:
        for column in row.cells["digits"]:
            for key in column:
                if row.id in VALUES:
                    value = VALUES[row.id] * (1 + key.steps if row.id == "decm" else 1 + 1 / key.steps) / 2
                    model = {"flops_per_step": FLOPS.get(row.id)}
                    found[key] = metric(key, value, model=model)
    return found


def filled(spec, metric) -> FilledTable:
    return fill_table(spec, measured(spec, metric), lambda *_: False)


def test_rows_are_ordered_by_the_first_column_and_ranked_in_each(make_spec, metric):
    table = filled(spec_of(make_spec), metric)
    order = [rows[0].row for rows in table.by_method()]
    assert order[:5] == ["decm", "scm", "meanflow", "teacher", "flow-matching"]
    ranks = {(row.row, row.steps): row.rank for row in table.rows}
    assert [ranks["decm", steps] for steps in (1, 2, 4, 50)] == [1, 2, 3, 5]
    assert ranks["scm", 50] == 1 and ranks["cd", 1] is None


def test_a_method_may_have_some_of_the_steps(make_spec, metric):
    spec = spec_of(make_spec)
    keys = {row.id: row.cells["digits"] for row in spec.rows}
    rows = measured(spec, metric) | {keys["get"][0][0]: metric(keys["get"][0][0], 0.5)}
    table = fill_table(spec, rows, lambda *_: False)
    assert table.step_labels == ["1", "2", "4", "50"]
    best, second = table.by_method()[:2]
    assert [row.rank for row in best] == [1] and [row.rank for row in second] == [2, 2, 3, 5]
    assert table.in_columns(best) == [best[0], None, None, None] and table.in_columns(second) == second
    assert "| GET [1] | 0.50 (1) | – | – | – | – |" in table_markdown(spec, table)


def test_a_method_without_the_first_number_of_steps_comes_last(make_spec, metric):
    spec = spec_of(make_spec)
    rows = [row if row.id != "scm" else row.model_copy(update={"steps": [50]}) for row in spec.table.rows]
    cells = [
        row if row.id != "scm" else row.model_copy(update={"cells": {"digits": row.cells["digits"][-1:]}})
        for row in spec.rows
    ]
    spec = spec.model_copy(
        update={"table": spec.table.model_copy(update={"rows": rows}), "rows": cells},
    )
    table = filled(spec, metric)
    assert table.by_method()[0][0].row == "decm"
    scm = next(rows for rows in table.by_method() if rows[0].row == "scm")
    assert table.best_first()[4:].count(scm) == 1 and scm[0].rank == 1
    assert [row and row.steps for row in table.in_columns(scm)] == [None, None, None, 50]
    ranking.draw_ranking(spec, table)


@pytest.mark.parametrize("name", ["afm-table", "newer-table", "f2d2-table", "get-table"])
def test_numbers_have_lines_of_their_own_where_few_methods_share_their_steps(name, make_spec):
    assert fill_table(make_spec(name), {}, lambda *_: False).step_labels == []


def test_rows_keep_their_order_unless_asked(make_spec, metric):
    table = filled(spec_of(make_spec, ranked=False), metric)
    assert [row.row for row in table.rows][:5] == ["teacher"] * 4 + ["flow-matching"]
    assert "rank" not in table.columns


def test_costs_are_relative_to_the_unit(make_spec, metric):
    costs = {row.row: row.cost for row in filled(spec_of(make_spec), metric).rows}
    assert (costs["flow-matching"], costs["decm"]) == (1.0, 2.8)
    # counted by nobody: published weights, or a training of before
    assert costs["teacher"] is None and costs["cd"] is None
    assert "cost" not in filled(spec_of(make_spec, unit=None), metric).columns


def test_the_table_tells_ranks_and_costs(make_spec, metric, write_json, tmp_path):
    spec = spec_of(make_spec)
    (tmp_path / "spec.json").write_text(dump(spec))
    files = [str(write_json(entry)) for entry in measured(spec, metric).values()]
    outs = [str(tmp_path / name) for name in ("zoo.csv", "zoo.md")]
    table_stage.main(
        ["--spec", str(tmp_path / "spec.json"), "--metrics", *files, "--out", outs[0], "--markdown", outs[1]]
    )
    assert read_table(outs[0]) == filled(spec, metric)
    text = (tmp_path / "zoo.md").read_text()
    assert "| DE-CM | 1.00 (1) | 1.50 (2) | 2.50 (3) | 25.50 (5) | 2.80 |" in text
    assert "relative to the row “Flow matching”" in text and "reported by the paper" not in text


@pytest.mark.parametrize("kind", ["ranking", "price"])
def test_pictures(kind, make_spec, metric, write_json, tmp_path):
    spec = spec_of(make_spec, kind)
    (tmp_path / "spec.json").write_text(dump(spec))
    files = [str(write_json(entry)) for entry in measured(spec, metric).values()]
    out = tmp_path / "zoo.png"
    call = ["--spec", str(tmp_path / "spec.json"), "--out", str(out), "--csv", str(tmp_path / "zoo.csv")]
    for given in (files, []):
        figure_stage.main([*call, "--metrics", *given])
        Image.open(out).verify()
        assert len(Image.open(out).convert("RGB").getcolors(maxcolors=1 << 24)) > 30


def test_names_do_not_cover_each_other():
    points = [(1 + 0.01 * i, 1 + 0.02 * i, f"method {i}") for i in range(9)]
    _, (axis,) = style.panels(1, width=8, height=5)
    axis.scatter([p[0] for p in points], [p[1] for p in points])
    axis.set(xlim=(0.5, 2), ylim=(0.5, 2))
    ranking._label(axis, points)
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == 9
    assert len(axis.texts) > 9, "a crowd needs lines from names to points"
    assert all(ranking._shared(a, b) == 0 for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("count", [ranking.FEW, ranking.FEW + 1])
def test_many_methods_have_numbers_and_a_key(count, make_spec, metric):
    spec = spec_of(make_spec, "price", steps=[1])
    keys = {row.id: row.cells["digits"][0][0] for row in spec.rows[:count]}
    found = {
        key: metric(key, 1 + index, model={"flops_per_step": 1e9 * (1 + index)})
        for index, key in enumerate(keys.values())
    }
    (axis,) = ranking.draw_price(spec, fill_table(spec, found, lambda *_: False)).axes
    texts = [text.get_text() for text in axis.texts if text.get_text()]
    if count == ranking.FEW:
        assert sorted(texts) == sorted(row.label for row in spec.table.rows[:count])
    else:
        key, *numbers = texts
        assert numbers == [str(number) for number in range(1, count + 1)]
        assert key.splitlines()[1] == " 2  Flow matching" and len(key.splitlines()) == count


def test_prices_are_those_of_the_number_of_steps_that_most_methods_have(make_spec, metric):
    spec = spec_of(make_spec, "price", steps=[1])
    found = measured(spec, metric)
    table = fill_table(spec, found, lambda *_: False)
    best = table.best_first()[0][0].row
    (axis,) = ranking.draw_price(spec, table).axes
    rows = [replace(row, nfe_label="8") if row.row == best else row for row in table.rows]
    (other,) = ranking.draw_price(spec, replace(table, rows=rows)).axes
    assert len(other.collections[0].get_offsets()) == len(axis.collections[0].get_offsets()) - 1 > 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "no rows: give rows, rows_of or bounds"),
        ({"unit": "decmm"}, "no row has the id 'decmm'"),
        ({"kind": "price", "unit": None}, "price needs unit"),
    ],
)
def test_mistakes(changes, message):
    raw = read_yaml(ROOT / "config/tables/zoo.yaml") | changes
    with pytest.raises(ConfigError, match=message):
        parse(Table, raw, "zoo.yaml")


def test_tables_share_rows(demo_plan):
    tables = demo_plan.config.tables
    assert tables["zoo-price"].rows == tables["zoo"].rows
    assert set(demo_plan.tables["zoo-price"].all_cells) < set(demo_plan.tables["zoo"].all_cells)


def test_many_trainings_wait_until_they_are_asked_for(paper_plan):
    everything = make_plan({**raw_config(), "targets": "all"})
    names = {name for name, table in paper_plan.config.tables.items() if table.by_name}
    assert {"zoo", "zoo-ranking", "zoo-price"} <= names
    assert set(everything.wanted) == {*paper_plan.config.tables, "claims", "report"} - names
    pictures = ["figure1", "figure4", "figure6", "samples"]
    assert paper_plan.wanted == ["table1", "table3", "table4", *pictures, "report"]
