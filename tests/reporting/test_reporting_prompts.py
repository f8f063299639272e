"""Scores of images with prompts in tables, claims and figures: larger is better, scorers may be refused."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from fewstep.config import dump
from fewstep.config.base import ConfigError, parse
from fewstep.config.specs import CellKey, ClaimsSpec
from fewstep.config.tables import Claim, Table
from fewstep.figure import main as figure
from fewstep.reporting.claim_checks import check_claims
from fewstep.reporting.formatting import format_mean, format_number
from fewstep.reporting.markdown import table_markdown
from fewstep.reporting.metrics import is_measured, metric_name
from fewstep.reporting.rows import fill_table

VALUES = {"decm": 0.57, "meanflow": 0.4, "scm": 0.0, "flow-matching": 0.0345}


@pytest.fixture
def spec(make_spec):
    """The zoo by GenEval, as the plan would make it."""

    def make(kind: str = "table", **changes):
        found = make_spec("zoo", scale="demo", protocols=("scenes",))
        table = found.table.model_copy(update={"kind": kind, "metric": "geneval"} | changes)
        return found.model_copy(update={"table": table, "extra_metrics": {"clip": "scenes"}})

    return make


@pytest.fixture
def scored(metric):
    def make(spec, **more):
        keys = [(row.id, key) for row in spec.rows for cells in row.cells["scenes"] for key in cells]
        return {
            key: metric(key, 0.0, geneval=VALUES[row], clip=0.31, **more)
            for row, key in keys
            if row in VALUES
        }

    return make


def test_the_largest_is_first(spec, scored):
    table = fill_table(spec(), scored(spec()), lambda _: False)
    order = [rows[0].row for rows in table.by_method()][:4]
    assert order == ["decm", "meanflow", "flow-matching", "scm"]
    ranks = {row.row: row.rank for row in table.rows if row.steps == 1}
    assert [ranks[row] for row in order] == [1, 2, 3, 4] and ranks["cd"] is None


def test_numbers_have_the_papers_decimals(spec, scored):
    text = table_markdown(spec(), fill_table(spec(), scored(spec()), lambda _: False))
    assert "| 0.570 (1) |" in text and "| 0.035 (3) |" in text and "| 0.3100 |" in text
    assert "GenEval, ours" in text and "CLIP score, ours" in text
    assert format_number(0.0, "geneval") == "0.000" and format_number(-1.6017, "image_reward") == "−1.6017"
    assert format_number(0.005, "geneval", signed=True) == "+0.005"
    assert format_mean(0.0123, 0.001, "geneval") == "0.012 ± 0.001"
    assert format_number(86.54, "dpg") == "86.54" and format_number(2.7749, "fid") == "2.77"
    assert metric_name("geneval_held_out", "demo") == "GenEval: captions held out"


def test_scores_by_another_scorer_say_so(spec, scored, metric):
    """By name, and they have no verdict beside a paper's number."""
    assert metric_name("geneval", "paper") == "GenEval (HF detector)"
    assert metric_name("geneval_colors", "paper") == "GenEval (HF detector): colors"
    assert metric_name("geneval", "demo") == metric_name("geneval", "reported") == "GenEval"
    assert metric_name("dpg_entity", "paper") == "DPG-Bench (Qwen3-VL): entity"
    assert metric_name("dpg", "reported") == "DPG-Bench" and metric_name("fid", "reported") == "FID"
    assert metric_name("geneval2_atoms", "paper") == "GenEval 2: mean over questions"
    found = spec().model_copy(update={"scale": "paper"})
    rows = [
        row.model_copy(update={"reported": {"geneval": [0.6] * len(row.steps or found.table.steps)}})
        for row in found.table.rows
    ]
    found = found.model_copy(update={"table": found.table.model_copy(update={"rows": rows})})
    for scorers, status, agrees in (
        ({"geneval": {"sha256": "0"}}, "reproduced", "yes"),
        ({"geneval": {"sha256": "0", "differs": "another detector"}}, "another scorer", ""),
        ({"clip": {"sha256": "0", "differs": "another"}}, "reproduced", "yes"),
    ):
        table = fill_table(found, scored(found, scorers=scorers), lambda _: False)
        row = next(row for row in table.rows if row.row == "decm")
        assert (row.ours, row.reported, row.status, row.agrees) == (0.57, 0.6, status, agrees)
        text = table_markdown(found, table)
        assert ("§ by another scorer than the published" in text) == (status == "another scorer")
    assert "**GenEval (HF detector): ours (reported)**" in text


def test_a_refused_scorer_of_two_words(spec, scored):
    entry = {"image_reward": 0.5, "refused": {"image_reward": "it guesses"}}
    assert not is_measured(entry, "image_reward") and is_measured(entry, "fid")
    assert is_measured({"refused": {"geneval2": ""}}, "geneval_colors")


def test_a_refused_scorer_has_no_number_and_the_table_says_why(spec, scored):
    spec, reason = spec(), "its detector finds nothing on the self-test's pictures"
    metrics = scored(spec, refused={"geneval": reason})
    for entry in metrics.values():
        del entry["geneval"]
    table = fill_table(spec, metrics, lambda _: False)
    row = next(row for row in table.rows if row.row == "decm")
    assert (row.ours, row.status, row.seeds, row["ours_clip"]) == (None, "missing", "0/1", 0.31)
    assert re.search(rf"DE-CM.*: no geneval: {reason}", table_markdown(spec, table))


def test_claims_about_a_refused_scorer_are_missing(metric):
    cells = [{"method": name, "sampler": "cm", "steps": 1} for name in ("decm", "meanflow")]
    claim = parse(
        Claim,
        {"id": "better", "statement": "", "source": "", "left": cells[0], "relation": ">", "right": cells[1:]}
        | {"metric": "geneval"},
        "claims.yaml",
    )
    keys = [CellKey(**cell, variant="base", seed=0, protocol="scenes") for cell in cells]
    spec = ClaimsSpec(claims=[claim], cells={"better": [keys]}, seeds=[0], scale="demo")
    metrics = {key: metric(key, 0.0, geneval=value) for key, value in zip(keys, (0.5, 0.25), strict=True)}
    (checked,) = check_claims(spec, metrics)
    assert (checked.holds, checked.worst_ratio, checked.left_text) == ("yes", 2.0, "decm cm 1: 0.500")
    metrics[keys[1]]["refused"] = {"geneval": "..."}
    assert check_claims(spec, metrics)[0].holds == "missing"


@pytest.mark.parametrize("kind", ["curve", "ranking", "price"])
def test_figures_of_shares_that_are_zero(spec, scored, kind, write_json, tmp_path):
    """No logarithm is taken of them."""
    spec = spec(kind)
    metrics = scored(spec)
    for entry in metrics.values():
        entry["model"] = {"flops_per_step": 1e9}
    (tmp_path / "spec.json").write_text(dump(spec))
    files = [str(write_json(entry)) for entry in metrics.values()]
    out = tmp_path / "figure.png"
    words = ["--spec", str(tmp_path / "spec.json"), "--out", str(out), "--csv", str(tmp_path / "figure.csv")]
    figure([*words, "--metrics", *files])
    Image.open(out).verify()


TABLE = {"kind": "table", "title": "", "paper": "", "steps": [1], "rows": [{"id": "a", "label": "A"}]}


def test_a_share_has_a_tolerance_of_its_own(paper_plan):
    tables = paper_plan.config.tables
    assert tables["table1"].tolerance.absolute == 0.1 and tables["table1"].metric == "fid"
    assert tables["table2"].tolerance.absolute == 0.01 and tables["table2"].metric == "clip"


def test_metrics_that_papers_report():
    row = {
        "id": "a",
        "label": "A",
        "reported": {key: [1.0] for key in ("clip", "blip", "image_reward", "geneval", "dpg")},
    }
    assert parse(Table, TABLE | {"metric": "geneval", "metrics": ["clip_seen"], "rows": [row]}, "t.yaml")
    with pytest.raises(ConfigError, match="unknown metric; did you mean 'geneval'"):
        parse(Table, TABLE | {"rows": [row | {"reported": {"geneva": [1.0]}}]}, "t.yaml")
