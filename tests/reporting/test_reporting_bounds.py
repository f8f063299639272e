"""Tables of bounds: scores of real scenes, what a scorer can see, and bounds that are none."""

from __future__ import annotations

import pytest

from fewstep.common.provenance import bounds_digest
from fewstep.config import ConfigError, dump
from fewstep.config.base import merge, sealed
from fewstep.config.specs import ReportItem, ReportSpec
from fewstep.reporting.bounds import ABOVE, bounds_table
from fewstep.reporting.page import render_page
from fewstep.reporting.rows import read_table
from fewstep.table import main as table

CODE = "0" * 16
CONTENT = {
    "metrics": {
        "real": {"geneval": 0.99, "clip": 0.9},
        "reconstructed": {"geneval": 0.95, "clip": 0.8},
        "others": {"geneval": 0.02, "clip": 0.1},
    },
    "above_swapped": {
        "clip": {"position": 0.53125, "counting": 1.0},
        "geneval": {"position": 1.0, "counting": 0.99},
    },
    "images": 646,
    "refused": {},
    "code": CODE,
}


@pytest.fixture
def spec(demo_plan):
    """That of the miniature, with one metric beside its own."""
    found = demo_plan.spec("table", "scenes-bounds")
    shown = found.table.model_copy(update={"metrics": ["clip"]})
    return found.model_copy(update={"table": shown, "extra_metrics": {"clip": "scenes"}})


@pytest.fixture
def filled(spec, tmp_path):
    def make(code: str = CODE, **changes):
        path = tmp_path / "bounds.json"
        path.write_text(sealed(merge(CONTENT, changes)))
        return bounds_table(spec, path, code)

    return make


def test_the_rows(filled):
    rows = {row.row: row for row in filled().rows}
    assert list(rows) == ["real", "reconstructed", "others", "swapped_counting", "swapped_position"]
    assert [row.ours for row in rows.values()] == [0.99, 0.95, 0.02, 0.99, 1.0]
    assert [row["ours_clip"] for row in rows.values()] == [0.9, 0.8, 0.1, 1.0, 0.53125]
    assert {row.status for row in rows.values()} == {"miniature"}
    assert [row.warnings for row in rows.values()] == [""] * 5
    assert rows["swapped_position"].group == ABOVE and rows["real"].images == "646"
    assert {row.status for row in filled(code="1" * 16).rows} == {"stale"}


@pytest.mark.parametrize(
    ("row", "values", "warning"),
    [
        ("real", {"geneval": 0.97}, "GenEval is 0.970, below 0.980"),
        ("others", {"geneval": 0.06}, "GenEval is 0.060, above 0.050"),
        ("reconstructed", {"geneval": 1.0}, "GenEval is 1.000, above that of real scenes, 0.990"),
        ("reconstructed", {"clip": 0.05}, "CLIP score is 0.0500, below that with captions of others, 0.1000"),
    ],
)
def test_bounds_that_are_none_are_warnings_of_their_row(filled, row, values, warning):
    found = {entry.row: entry.warnings for entry in filled(metrics={row: values}).rows}
    assert found.pop(row) == warning
    assert set(found.values()) == {""}


def test_a_refused_scorer_leaves_its_column_empty(spec, tmp_path):
    content = {**CONTENT, "refused": {"clip": "why"}, "above_swapped": {"geneval": {"position": 1.0}}}
    content["metrics"] = {key: {"geneval": 0.5} for key in CONTENT["metrics"]}
    path = tmp_path / "bounds.json"
    path.write_text(sealed(content))
    rows = bounds_table(spec, path, CODE).rows
    assert {row["ours_clip"] for row in rows} == {None} and rows[-1].ours == 1.0
    assert all("no clip: why" in row.warnings for row in rows)


def test_the_files_and_the_page(spec, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(dump(spec))
    bounds = merge(CONTENT, {"code": bounds_digest(), "metrics": {"real": {"geneval": 0.97}}})
    (tmp_path / "bounds.json").write_text(sealed(bounds))
    out, markdown = tmp_path / "scenes-bounds.csv", tmp_path / "scenes-bounds.md"
    words = ["--spec", str(tmp_path / "spec.json"), "--out", str(out), "--markdown", str(markdown)]
    with pytest.raises(ConfigError, match=r"spec\.json: table\.bounds: needs a file; pass --bounds"):
        table([*words, "--bounds"])
    table([*words, "--bounds", str(tmp_path / "bounds.json")])
    warning = "Real scenes, their own captions: GenEval is 0.970, below 0.980."
    assert f"warning: scenes-bounds: {warning}" in capsys.readouterr().err
    text = markdown.read_text()
    assert "| its relation | – | – | 1.000 | 0.5312 | miniature |" in text
    assert f"¶ {warning}" in text
    read = read_table(out)
    assert [row.row for row in read.rows][:3] == ["real", "reconstructed", "others"]
    report = ReportSpec(
        title="T",
        scale="demo",
        command="make",
        items=[
            ReportItem(name="scenes-bounds", kind="table", title="Bounds", paper="P", target=str(out)),
        ],
    )
    page = render_page(report, {out.name: out}, lambda _: [], tmp_path)
    assert "its relation" in page and warning in page and "Bounds of the scores" in page


def test_a_file_that_is_no_bounds(spec, tmp_path):
    path = tmp_path / "bounds.json"
    path.write_text(sealed({"metrics": {}}))
    with pytest.raises(ValueError, match=r"bounds\.json: above_swapped: is missing"):
        bounds_table(spec, path, CODE)
    path.write_text(sealed({**CONTENT, "metrics": {}}))
    with pytest.raises(ValueError, match=r"metrics\.real: geneval is None, not a finite number"):
        bounds_table(spec, path, CODE)
