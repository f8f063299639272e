"""Joining metrics to cells, statuses, agreement, and the two written forms."""

from __future__ import annotations

import json

import pytest

from fewstep import table as stage
from fewstep.config import dump
from fewstep.results import load_metrics, read_csv, short, table_lines

TODAY = "1" * 16


def cells(spec, row, protocol="decm"):
    return next(entry for entry in spec.rows if entry.id == row).cells[protocol]


def line(lines, row, steps):
    return next(entry for entry in lines if (entry["row"], entry["steps"]) == (row, str(steps)))


def lines_of(spec, *contents):
    from fewstep.config.specs import CellKey

    return table_lines(
        spec, {CellKey(**c["cell"]): c for c in contents}, lambda entry: entry["code"] not in (None, TODAY)
    )


def test_a_number_lands_in_every_row_that_asks_for_its_cell(make_spec, metric):
    spec = make_spec("table3")
    lines = lines_of(spec, metric(cells(spec, "g")[0][0], 1.72))
    assert [entry["row"] for entry in lines if entry["ours"]] == ["g", "h", "j", "n"]
    found = line(lines, "h", 1)
    assert (found["ours"], found["reported"], found["sampler"], found["status"]) == (
        "1.72",
        "1.7",
        "cm",
        "reproduced",
    )
    assert (found["difference"], found["tolerance"], found["agrees"]) == ("0.02", "0.1", "yes")


def test_missing_and_reported_only_and_released(make_spec, metric):
    spec = make_spec("table1")
    teacher = metric(cells(spec, "lightningdit-guided")[0][0], 1.36, status="released")
    lines = lines_of(spec, teacher)
    assert line(lines, "biggan", 1)["status"] == "reported only"
    assert line(lines, "decm", 2)["status"] == "missing" and line(lines, "decm", 2)["seeds"] == "0/1"
    guided = line(lines, "lightningdit-guided", 250)
    assert (guided["status"], guided["nfe_label"], guided["sampler"]) == (
        "released weights",
        "250×2",
        "euler-lightningdit",
    )


@pytest.mark.parametrize(
    ("code", "status"), [(TODAY, "reproduced"), ("2" * 16, "stale"), (None, "reproduced")]
)
def test_stale_when_the_code_has_changed(make_spec, metric, code, status):
    spec = make_spec("table4")
    lines = lines_of(spec, metric(cells(spec, "mix")[0][0], 1.4, code=code))
    assert line(lines, "mix", 4)["status"] == status


@pytest.mark.parametrize(("name", "row"), [("table1", "decm"), ("table4", "mix"), ("facm-released", "250ep")])
def test_further_metrics_have_columns_of_one_protocol_each(make_spec, metric, name, row):
    """Of a table with a line for each number of steps, and of one with a column."""
    spec = make_spec(name).model_copy(update={"further": {"is": "decm", "kid": "common", "recall": "common"}})
    keys = {protocol: cells(spec, row, protocol)[0][0] for protocol in spec.protocols}
    own = metric(keys["decm"], 1.72) | {"is": 290.125}
    common = metric(keys["common"], 1.9) | {"kid": 0.000123456, "recall": 0.62, "is": 1.0}
    lines = lines_of(spec, own, common)
    found = line(lines, row, keys["decm"].steps)
    assert (found["ours_is"], found["ours_kid"], found["ours_recall"]) == ("290.125", "0.000123456", "0.62")
    assert {entry["ours_kid"] for entry in lines if entry["row"] != row} == {""}
    text = stage.markdown(spec, lines)
    for word in ("KID", "`common`", "0.000123", "290", "0.62"):
        assert word in text
    assert all(entry.keys() == found.keys() for entry in lines)


def test_a_further_metric_that_a_file_lacks_is_an_error(make_spec, metric):
    spec = make_spec("table4").model_copy(update={"further": {"kid": "decm"}})
    with pytest.raises(ValueError, match="kid is None, not a finite number"):
        lines_of(spec, metric(cells(spec, "mix")[0][0], 1.4))


@pytest.mark.parametrize("scale", ["demo", "small", "demo/paper"])
def test_nothing_below_full_scale_is_compared_with_the_paper(make_spec, metric, scale):
    spec = make_spec("table4", scale=scale)
    found = line(lines_of(spec, metric(cells(spec, "mix")[0][0], 1.41)), "mix", 4)
    assert found["status"] == "miniature" and found["ours"] == "1.41"
    assert found["difference"] == found["tolerance"] == found["agrees"] == ""
    text = stage.markdown(spec, lines_of(spec, metric(cells(spec, "mix")[0][0], 1.05)))
    assert "In miniature: DE-CM, Table 4" in text and "never the numbers" in text
    assert "1.05 (" not in text and "reported by the paper, at full scale" in text and "FID, ours" not in text


@pytest.mark.parametrize(
    ("row", "fid", "agrees"),
    [("euler", 79.9, "yes"), ("euler", 80.0, "no"), ("mix", 1.51, "yes"), ("mix", 1.52, "no")],
)
def test_the_tolerance_is_the_larger_of_absolute_and_relative(make_spec, metric, row, fid, agrees):
    spec = make_spec("table4")
    assert line(lines_of(spec, metric(cells(spec, row)[0][0], fid)), row, 4)["agrees"] == agrees


def test_seeds_give_mean_and_sample_deviation(make_spec, metric):
    spec = make_spec("table4", seeds=(0, 1, 2))
    keys = cells(spec, "cm")[0]
    lines = lines_of(spec, metric(keys[0], 1.0), metric(keys[2], 3.0))
    found = line(lines, "cm", 4)
    assert (found["ours"], found["ours_std"], found["seeds"]) == ("2", "1.41421", "2/3")
    assert "2.00 ± 1.41 (1.56)" in stage.markdown(spec, lines)


def test_other_protocols_have_columns_of_their_own(make_spec, metric):
    spec = make_spec("table4")
    lines = lines_of(spec, metric(cells(spec, "cm", "common")[1][0], 2.22))
    found = line(lines, "cm", 8)
    assert (found["common"], found["ours"], found["protocol"], found["status"]) == (
        "2.22",
        "",
        "decm",
        "missing",
    )
    assert "protocol `common`" in stage.markdown(spec, lines)


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
        lines_of(spec, metric(cells(spec, "mix")[0][0], float("nan")))


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
    lines = read_csv(out)
    assert len(lines) == 35 and line(lines, "decm", 50)["difference"] == "0.44"
    assert list(lines[0])[:3] == ["table", "row", "group"] and "reported_time" in lines[0]
    shown = text.read_text()
    assert "| DE-CM | 675M | 1 | 0.011 | 1.70 | 1.70 | 0.00 | 0.10 | reproduced |" in shown
    assert "| **GAN** |" in shown and "[1] Time printed as > 3.75." in shown
    assert "does not ask for" in capsys.readouterr().err
    widths = {row.replace("\\|", "").count("|") for row in shown.splitlines() if row.startswith("|")}
    assert len(widths) == 1


def test_bars_in_labels_do_not_break_markdown(make_spec):
    spec = make_spec("table4")
    raw = json.loads(dump(spec).replace("Mix sampler", "Mix | sampler"))
    again = type(spec).model_validate(raw)
    assert "| Mix \\| sampler" in stage.markdown(again, lines_of(again))


def test_short_numbers():
    assert [short("309.51"), short("1234.56"), short(""), short("-0.001", signed=True), short("-0.2")] == [
        "309.51",
        "1234.6",
        "",
        "0.00",
        "−0.20",
    ]
