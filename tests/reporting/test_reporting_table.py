"""Joining metrics to cells, statuses, agreement, and the two written forms."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from fewstep import table as stage
from fewstep.common.provenance import is_stale
from fewstep.config import dump
from fewstep.config.specs import CellKey
from fewstep.reporting.formatting import csv_text, format_mean, format_number
from fewstep.reporting.markdown import table_markdown, warning_texts
from fewstep.reporting.metrics import load_metrics
from fewstep.reporting.page import hint
from fewstep.reporting.rows import FilledTable, TableRow, fill_table, is_miniature, read_table


def cells(spec, row, protocol="decm"):
    return next(entry for entry in spec.rows if entry.id == row).cells[protocol]


def row_of(table: FilledTable, row: str, steps: int) -> TableRow:
    return next(entry for entry in table.rows if (entry.row, entry.steps) == (row, steps))


def filled(spec, *contents) -> FilledTable:
    metrics = {CellKey(**content["cell"]): content for content in contents}
    return fill_table(spec, metrics, lambda entry: entry["code"] == "of before")


def test_a_number_lands_in_every_row_that_asks_for_its_cell(make_spec, metric):
    spec = make_spec("table3")
    table = filled(spec, metric(cells(spec, "g")[0][0], 1.72))
    assert [row.row for row in table.rows if row.ours is not None] == ["g", "h", "j", "n"]
    found = row_of(table, "h", 1)
    assert (found.ours, found.reported, found.sampler, found.status) == (1.72, 1.7, "cm", "reproduced")
    assert (found.difference, found.tolerance, found.agrees) == (0.02, 0.1, "yes")


def test_missing_and_reported_only_and_released(make_spec, metric):
    spec = make_spec("table1")
    teacher = metric(cells(spec, "lightningdit-guided")[0][0], 1.36, status="released")
    table = filled(spec, teacher)
    assert row_of(table, "biggan", 1).status == "reported only"
    assert row_of(table, "decm", 2).status == "missing" and row_of(table, "decm", 2).seeds == "0/1"
    guided = row_of(table, "lightningdit-guided", 250)
    assert (guided.status, guided.nfe_label, guided.sampler) == (
        "released weights",
        "250×2",
        "euler-lightningdit",
    )


@pytest.mark.parametrize(
    ("code", "status"), [("of today", "reproduced"), ("of before", "stale"), (None, "reproduced")]
)
def test_stale_when_the_code_has_changed(make_spec, metric, code, status):
    spec = make_spec("table4")
    table = filled(spec, metric(cells(spec, "mix")[0][0], 1.4, code=code))
    assert row_of(table, "mix", 4).status == status


@pytest.mark.parametrize(("name", "row"), [("table1", "decm"), ("table4", "mix"), ("facm-released", "250ep")])
def test_extra_metrics_have_columns_of_one_protocol_each(make_spec, metric, name, row):
    """Of a table with a line for each number of steps, and of one with a column."""
    spec = make_spec(name).model_copy(
        update={"extra_metrics": {"is": "decm", "kid": "common", "recall": "common"}}
    )
    keys = {protocol: cells(spec, row, protocol)[0][0] for protocol in spec.protocols}
    own = metric(keys["decm"], 1.72) | {"is": 290.125}
    common = metric(keys["common"], 1.9) | {"kid": 0.000123456, "recall": 0.62, "is": 1.0}
    table = filled(spec, own, common)
    found = row_of(table, row, keys["decm"].steps)
    assert (found["ours_is"], found["ours_kid"], found["ours_recall"]) == (290.125, 0.000123456, 0.62)
    assert {entry["ours_kid"] for entry in table.rows if entry.row != row} == {None}
    text = table_markdown(spec, table)
    for word in ("KID", "`common`", "0.000123", "290", "0.62"):
        assert word in text
    assert table.extra_metrics == ["is", "kid", "recall"]


def test_an_extra_metric_that_a_file_lacks_is_an_error(make_spec, metric):
    spec = make_spec("table4").model_copy(update={"extra_metrics": {"kid": "decm"}})
    with pytest.raises(ValueError, match="kid is None, not a finite number"):
        filled(spec, metric(cells(spec, "mix")[0][0], 1.4))


@pytest.mark.parametrize("scale", ["demo", "small", "demo/paper"])
def test_nothing_below_full_scale_is_compared_with_the_paper(make_spec, metric, scale):
    spec = make_spec("table4", scale=scale)
    found = row_of(filled(spec, metric(cells(spec, "mix")[0][0], 1.41)), "mix", 4)
    assert found.status == "miniature" and found.ours == 1.41
    assert (found.difference, found.tolerance, found.agrees) == (None, None, "")
    text = table_markdown(spec, filled(spec, metric(cells(spec, "mix")[0][0], 1.05)))
    assert "In miniature: DE-CM, Table 4" in text and "never the numbers" in text
    assert "1.05 (" not in text and "reported by the paper, at full scale" in text and "FID, ours" not in text


def test_own_images_have_no_paper(make_spec, metric):
    spec = make_spec("table4", scale="own")
    rows = [row.model_copy(update={"reported": {}, "note": ""}) for row in spec.table.rows]
    table = spec.table.model_copy(update={"paper": "", "caption": "", "rows": rows})
    spec = spec.model_copy(update={"table": table})
    found = filled(spec, metric(cells(spec, "mix")[0][0], 1.41))
    assert row_of(found, "mix", 4).status == "measured"
    for form in (found, replace(found, rows=found.rows[:1])):  # wide and long
        text = table_markdown(spec, form)
        assert not re.search("miniature|paper|reported|ours|FID|Source", text, re.IGNORECASE), text


@pytest.mark.parametrize(
    ("row", "fid", "agrees"),
    [("euler", 79.9, "yes"), ("euler", 80.0, "no"), ("mix", 1.51, "yes"), ("mix", 1.52, "no")],
)
def test_the_tolerance_is_the_larger_of_absolute_and_relative(make_spec, metric, row, fid, agrees):
    spec = make_spec("table4")
    assert row_of(filled(spec, metric(cells(spec, row)[0][0], fid)), row, 4).agrees == agrees


def test_seeds_give_mean_and_sample_deviation(make_spec, metric):
    spec = make_spec("table4", seeds=(0, 1, 2))
    keys = cells(spec, "cm")[0]
    table = filled(spec, metric(keys[0], 1.0), metric(keys[2], 3.0))
    found = row_of(table, "cm", 4)
    assert (found.ours, found.ours_std, found.seeds) == (2.0, 1.41421, "2/3")
    assert "2.00 ± 1.41 (1.56)" in table_markdown(spec, table)


def test_other_protocols_have_columns_of_their_own(make_spec, metric):
    spec = make_spec("table4")
    table = filled(spec, metric(cells(spec, "cm", "common")[1][0], 2.22))
    found = row_of(table, "cm", 8)
    assert (found["common"], found.ours, found.protocol, found.status) == (2.22, None, "decm", "missing")
    assert "protocol `common`" in table_markdown(spec, table)


def test_the_join_uses_the_cell_and_never_the_path(make_spec, metric, write_json):
    key = cells(make_spec("table4"), "mix")[0][0]
    path = write_json(metric(key, 1.4))
    assert list(load_metrics([path])) == [key]
    with pytest.raises(ValueError, match="same cell"):
        load_metrics([path, write_json(metric(key, 1.5))])
    with pytest.raises(ValueError, match="no key `cell`"):
        load_metrics([write_json({"fid": 1.0})])


def test_a_metric_that_is_no_number_is_refused(make_spec, metric):
    spec = make_spec("table4")
    with pytest.raises(ValueError, match="not a finite number"):
        filled(spec, metric(cells(spec, "mix")[0][0], float("nan")))


def test_the_stage_writes_both_forms(make_spec, metric, write_json, tmp_path, capsys):
    spec = make_spec("table1")
    path = tmp_path / "spec.json"
    path.write_text(dump(spec))
    files = [write_json(metric(keys[0], 1.7)) for keys in cells(spec, "decm")]
    other = make_spec("table4")
    files.append(write_json(metric(cells(other, "mix")[0][0], 9.0)))
    out, text = tmp_path / "out/table1.csv", tmp_path / "out/table1.md"
    stage.main(
        ["--spec", str(path), "--metrics", *map(str, files), "--out", str(out), "--markdown", str(text)]
    )
    table = read_table(out)
    assert len(table.rows) == 35 and row_of(table, "decm", 50).difference == 0.44
    assert table.columns[:3] == ["table", "row", "group"] and table.reported_metrics == ["time"]
    assert table == fill_table(spec, load_metrics(files), is_stale)
    shown = text.read_text()
    assert "| DE-CM | 675M | 1 | 0.011 | 1.70 | 1.70 | 0.00 | 0.10 | reproduced |" in shown
    assert "| **GAN** |" in shown and "[1] Time printed as > 3.75." in shown
    assert "does not ask for" in capsys.readouterr().err
    widths = {row.replace("\\|", "").count("|") for row in shown.splitlines() if row.startswith("|")}
    assert len(widths) == 1


def test_a_csv_file_of_other_columns_is_named(make_spec, tmp_path):
    path = tmp_path / "table4.csv"
    path.write_text(filled(make_spec("table4")).to_csv().replace(",steps,", ",nfe,"))
    with pytest.raises(ValueError, match=r"table4\.csv: .*its cells are not those of its column digest"):
        read_table(path)


def test_bars_in_labels_do_not_break_markdown(make_spec):
    spec = make_spec("table4")
    again = type(spec).model_validate_json(spec.model_dump_json().replace("Mix sampler", "Mix | sampler"))
    assert "| Mix \\| sampler" in table_markdown(again, filled(again))


def test_numbers_for_readers():
    shown = [format_number(309.51), format_number(1234.56), format_number(None), format_number(-0.2)]
    assert shown == ["309.51", "1234.6", "", "−0.20"]
    assert [format_number(value, signed=True) for value in (-0.001, 0.5)] == ["0.00", "+0.50"]
    assert format_number(-0.0001234, significant=3) == "−0.000123"
    assert [format_number(value, "fdd", significant=3) for value in (999.6, 25000)] == ["1000", "25000"]
    assert [format_number(value, significant=3) for value in (0.81, 0, 147.2)] == ["0.810", "0.00", "147"]
    assert [format_number(0.81, name) for name in ("precision", "recall")] == ["0.810", "0.810"]
    assert [format_number(value, "recall", exact=True) for value in (0.81, 2, 0.625)] == [
        "0.81",
        "2",
        "0.625",
    ]
    assert [format_mean(2.0, None), format_mean(2.0, 0.5), format_mean(0.004, 0.001)] == [
        "2.00",
        "2.00 ± 0.50",
        "0.00400 ± 0.00100",
    ]


def test_numbers_in_csv_files():
    values = [1.23456789, 3, None, "x", [0.5, None], 1e-7]
    assert [csv_text(value) for value in values] == ["1.23457", "3", "", "x", "0.5; ", "1e-07"]


def test_warnings_stand_beside_the_number(make_spec, metric, write_json, tmp_path, capsys):
    spec = make_spec("table4", scale="paper")
    row = spec.rows[0]
    keys = next(iter(row.cells.values()))[0]
    entry = metric(keys[0], 2.0) | {"images": 40, "dimensions": 64, "model": {"skipped_updates": 2}}
    path = tmp_path / "spec.json"
    path.write_text(dump(spec))
    out, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    words = ["--spec", path, "--metrics", write_json(entry), "--out", out, "--markdown", markdown]
    stage.main(list(map(str, words)))
    skipped, few = "2 updates of the training were not finite and were skipped", "40 images in 64 dimensions"
    assert f"{skipped}; Fréchet distance of {few}" in capsys.readouterr().err
    assert "2.00¶" in markdown.read_text() and skipped in markdown.read_text()
    table = read_table(out)
    assert [few in one.warnings for one in table.rows].count(True) == 1
    assert skipped in hint(next(one for one in table.rows if one.warnings))


@pytest.mark.parametrize("scale", ["paper", "toy", "own", "demo", "small", "demo/paper"])
def test_which_scales_are_miniatures(scale):
    """A toy is as small in its paper, and own images have none."""
    assert is_miniature(scale) == (scale not in ("paper", "toy", "own"))


def test_a_warning_of_several_rows_is_told_once(make_spec, metric):
    spec = make_spec("table4")
    keys = [key for row in spec.rows for column in row.cells["decm"] for key in column]
    metrics = {key: metric(key, 2.0, dimensions=60000) for key in keys}
    (warning,) = warning_texts(fill_table(spec, metrics, lambda *_: False))
    labels = ", ".join(row.label for row in spec.table.rows)
    assert warning == f"{labels}: Fréchet distance of 50000 images in 60000 dimensions, which is biased."
