"""Claims that hold, fail, or lack numbers."""

from __future__ import annotations

import pytest

from fewstep import claims as stage
from fewstep.config import dump
from fewstep.config.specs import CellKey, ClaimsSpec
from fewstep.config.tables import CellName, Claim
from fewstep.reporting.claim_checks import check_claims, read_claims

TEACHER = CellName(method="teacher", sampler="euler", steps=1)
DECM = CellName(method="decm", sampler="cm", steps=1)
FACM = CellName(method="facm", sampler="cm", steps=1)


def claim(left, relation, right, factor=1.0, **more) -> Claim:
    return Claim(
        id="c",
        statement="left | right",
        source="paper",
        left=left,
        relation=relation,
        right=right,
        factor=factor,
        **more,
    )


def spec_of(*claims, scale="demo", seeds=(0, 1)) -> ClaimsSpec:
    """With a teacher that is trained once."""

    def key(cell: CellName, seed: int) -> CellKey:
        return CellKey(**cell.model_dump(), seed=0 if cell.method == "teacher" else seed, protocol="p")

    cells = {}
    for claim in claims:
        sides = [claim.left, *claim.right]
        own = [0] if all(cell.method == "teacher" for cell in sides) else seeds
        cells[claim.id] = [[key(cell, seed) for cell in sides] for seed in own]
    return ClaimsSpec(claims=list(claims), cells=cells, seeds=list(seeds), scale=scale)


def numbers(metric, **values):
    """metrics from name -> FIDs by seed."""
    found = {}
    for name, fids in values.items():
        cell = {"teacher": TEACHER, "decm": DECM, "facm": FACM}[name]
        for seed, fid in enumerate(fids):
            if fid is not None:
                key = CellKey(**cell.model_dump(), seed=seed, protocol="p")
                found[key] = metric(key, fid)
    return found


def test_holds_for_every_seed_with_the_worst_ratio(metric):
    spec = spec_of(claim(DECM, "<", [FACM, TEACHER]))
    (checked,) = check_claims(spec, numbers(metric, decm=[1.0, 1.1], facm=[1.25, 1.21], teacher=[8.0]))
    assert (checked.holds, checked.seeds, checked.worst_ratio) == ("yes", "2/2", 0.909091)
    assert (checked.left_mean, checked.left_std) == (1.05, 0.0707107)
    assert checked.right_mean == [1.23, 8.0] and checked.right_std[1] is None


def test_one_seed_or_one_right_side_is_enough_to_fail(metric):
    spec = spec_of(claim(DECM, "<", [FACM, TEACHER]))
    (checked,) = check_claims(spec, numbers(metric, decm=[1.0, 1.3], facm=[1.25, 1.2], teacher=[8.0]))
    assert (checked.holds, checked.seeds) == ("no", "1/2")
    assert checked.surprising


@pytest.mark.parametrize(("factor", "holds"), [(3.0, "yes"), (9.0, "no")])
def test_the_factor_scales_the_right_side(metric, factor, holds):
    spec = spec_of(claim(TEACHER, ">=", [DECM], factor))
    (checked,) = check_claims(spec, numbers(metric, teacher=[8.0], decm=[1.0, 1.0]))
    assert checked.holds == holds and checked.worst_ratio == 8


def test_missing_only_when_nothing_fails(metric):
    spec = spec_of(claim(DECM, "<", [FACM]))
    assert check_claims(spec, {})[0].holds == "missing"
    assert check_claims(spec, numbers(metric, decm=[1.0], facm=[1.2]))[0].holds == "missing"
    (checked,) = check_claims(spec, numbers(metric, decm=[1.3], facm=[1.2]))
    assert (checked.holds, checked.seeds) == ("no", "0/2")


def test_known_failures_are_no_surprise_in_miniature_and_are_at_full_scale(metric):
    failing = numbers(metric, decm=[1.3, 1.3], facm=[1.2, 1.2])
    known = claim(DECM, "<", [FACM], miniature="fails")
    assert not check_claims(spec_of(known), failing)[0].surprising
    assert check_claims(spec_of(known, scale="paper"), failing)[0].surprising
    assert not check_claims(spec_of(claim(DECM, "<", [FACM], miniature="varies")), failing)[0].surprising


def test_claims_among_cells_trained_once_need_one_seed(metric):
    other = CellName(method="teacher", sampler="euler-guided", steps=1)
    key = CellKey(**other.model_dump(), seed=0, protocol="p")
    found = numbers(metric, teacher=[8.0]) | {key: metric(key, 7.0)}
    (checked,) = check_claims(spec_of(claim(other, "<", [TEACHER])), found)
    assert (checked.holds, checked.seeds) == ("yes", "1/1")


def test_the_stage_writes_both_forms(metric, write_json, tmp_path):
    spec = spec_of(claim(DECM, "<", [FACM]), seeds=(0,))
    path = tmp_path / "spec.json"
    path.write_text(dump(spec))
    files = [write_json(entry) for entry in numbers(metric, decm=[1.0], facm=[1.2]).values()]
    out, text = tmp_path / "claims.csv", tmp_path / "claims.md"
    stage.main(
        ["--spec", str(path), "--metrics", *map(str, files), "--out", str(out), "--markdown", str(text)]
    )
    (checked,) = read_claims(out)
    assert (
        checked == check_claims(spec, numbers(metric, decm=[1.0], facm=[1.2]))[0] and checked.holds == "yes"
    )
    shown = text.read_text()
    assert "left \\| right" in shown and "**yes**" in shown and "neither proved nor refuted" in shown
