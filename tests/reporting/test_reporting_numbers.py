"""config/tables and config/claims.yaml against the text of the paper."""

from __future__ import annotations

import json
from operator import ge, gt, le, lt

import pytest
from reporting_helpers import ROOT, sampler_of

from fewstep.config import ConfigError, dump, read_spec
from fewstep.config.base import merge, parse, read_yaml
from fewstep.config.specs import TableSpec
from fewstep.config.tables import Claim, Table
from fewstep.methods.decm.params import DECMParams

FOLDER = ROOT / "config/tables"


def table(name: str) -> Table:
    path = FOLDER / f"{name}.yaml"
    return parse(Table, read_yaml(path), str(path))


def reported(name: str, row: str, metric: str = "fid"):
    return next(r for r in table(name).rows if r.id == row).reported[metric]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_table_validates(path):
    table = parse(Table, read_yaml(path), str(path))
    assert table.rows or table.rows_of


@pytest.mark.parametrize(
    ("name", "row", "values"),
    [
        ("table1", "biggan", [6.95]),
        ("table1", "maskgit", [6.18]),
        ("table1", "adm", [10.94]),
        ("table1", "sit-guided", [2.15]),
        ("table1", "lightningdit", [2.17]),
        ("table1", "lightningdit-guided", [1.35]),
        ("table1", "meanflow-published", [3.43, 2.20]),
        ("table1", "meanflow", [2.79, 1.74]),
        ("table1", "imm", [7.77, 3.99]),
        ("table1", "facm", [1.76, 1.56]),
        ("table1", "ict", [34.24, 20.30]),
        ("table1", "scm", [3.34, 1.94]),
        ("table1", "shortcut", [10.60, 7.80]),
        ("table1", "decm", [1.70, 1.33, 1.26]),
        ("table3", "a", [309.51, 230.79, 111.59, 2.77]),
        ("table3", "d", [3.08, 2.50, 2.54, 6.52]),
        ("table3", "f", [441.66, 297.28, 132.60, 1.41]),
        ("table3", "i", [1.75, 1.30, 1.43, 1.35]),
        ("table3", "l", [1.83, 1.45, 1.67, 1.41]),
        ("table3", "m", [1.72, 1.48, 1.77, 1.45]),
        ("table4", "euler", [76.15, 8.26, 3.61, 2.38]),
        ("table4", "cm", [1.56, 2.37, 3.00, 3.72]),
        ("table4", "mix", [1.41, 1.51, 1.53, 1.42]),
    ],
)
def test_reported_numbers_are_the_papers(name, row, values):
    assert reported(name, row) == values


def test_table1_has_every_row_with_parameters_and_time():
    rows = table("table1").rows
    assert len(rows) == 26 and all(row.params and "time" in row.reported for row in rows)
    assert reported("table1", "decm", "time") == [0.011, 0.024, 0.58]
    assert list(dict.fromkeys(row.group for row in rows)) == [
        "GAN",
        "Masked & AR",
        "Diffusion & flow",
        "Consistency model",
    ]
    assert next(row for row in rows if row.id == "imm").nfe_label == ["1×2", "2×2"]


def test_table3_has_rows_a_to_o_and_the_full_model_four_times():
    rows = {row.id: row for row in table("table3").rows}
    assert "".join(rows) == "abcdefghijklmno"
    full = [rows[name] for name in "ghjn"]
    assert all(
        row.reported == full[0].reported and (row.method, row.variant) == ("decm", "base") for row in full
    )


def test_every_ablation_gives_a_valid_loss():
    base = {"name": "decm", "times": {"law": "segments", "segments": 100}, "freq": 3}
    for name in ("table3", "figure4"):
        for row in table(name).rows:
            if row.method == "decm" and row.set is not None:
                parse(DECMParams, merge(base, row.set.loss), f"{name}.yaml", row.id)


def test_figure1_repeats_the_tables():
    assert reported("figure1", "teacher") == reported("table3", "b")
    assert reported("figure1", "decm") == reported("table3", "g")
    assert reported("figure1", "facm") == [1.76, None, 1.56, None]


def reported_cells() -> dict[tuple[str, str, str, str, int], float]:
    """(metric, method, variant, sampler, NFE) -> what the paper reports."""
    found = {}
    for name in ("table1", "table2", "table3", "table4"):
        content = table(name)
        for row in content.rows:
            for steps, value in zip(row.steps or content.steps, row.reported[content.metric], strict=True):
                if row.method is not None:
                    found[content.metric, row.method, row.variant, sampler_of(row, steps), steps] = value
    return found


def test_the_papers_own_numbers_meet_every_claim():
    claims = [parse(Claim, raw, "claims.yaml") for raw in read_yaml(ROOT / "config/claims.yaml")["claims"]]
    known = reported_cells()
    compare = {"<": lt, "<=": le, ">": gt, ">=": ge}
    for claim in claims:
        left, *right = (
            known.get((claim.metric, cell.method, cell.variant, cell.sampler, cell.steps))
            for cell in [claim.left, *claim.right]
        )
        if claim.metric == "fid" and claim.source.startswith("DE-CM") and not claim.scales:
            assert left is not None, claim.id
            # The paper has no 50-step number of FACM itself; its row "FM + CD" is the nearest.
            right = [
                known["fid", "decm", "fm-cd", "euler", 50] if value is None else value for value in right
            ]
        if left is None or None in right:
            continue  # the numbers behind it could not be read, or are not reported
        assert all(compare[claim.relation](left, claim.factor * value) for value in right), claim.id


def test_claims_are_named_once_and_say_why_they_may_fail_in_miniature():
    claims = [parse(Claim, raw, "claims.yaml") for raw in read_yaml(ROOT / "config/claims.yaml")["claims"]]
    assert len({claim.id for claim in claims}) == len(claims)
    assert {claim.miniature for claim in claims} == {"holds", "fails", "varies"}
    assert all(claim.note for claim in claims if claim.miniature != "holds")


def test_a_table_spec_survives_json(make_spec, tmp_path):
    spec = make_spec("table3", seeds=(0, 1))
    path = tmp_path / "spec.json"
    path.write_text(dump(spec))
    again = read_spec(TableSpec, path)
    assert again == spec
    assert next(row for row in again.table.rows if row.id == "e").sampler == {"default": "cm", 50: "euler"}


def test_a_spec_with_cells_of_an_unknown_row_is_refused(make_spec, tmp_path):
    path = tmp_path / "spec.json"
    raw = make_spec("table4").model_dump(mode="json")
    next(row for row in raw["table"]["rows"] if row["id"] == "mix")["id"] = "max"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match="row mix, which the table does not have"):
        read_spec(TableSpec, path)
