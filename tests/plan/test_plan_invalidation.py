"""Which specs move when the configuration changes: all that should, and nothing else."""

from __future__ import annotations

import fnmatch

import pytest
from configs import make_plan, raw_config

from fewstep.config.base import merge
from fewstep.config.specs import CellKey
from fewstep.config.text import LikelihoodProtocol
from fewstep.plan import Plan


def all_specs(plan: Plan) -> dict[str, str]:
    """Every spec that the plan's targets need, by stage and name."""
    names: set[tuple[str, str]] = {("claims", name) for name in plan.names["claims"]} | {("report", "report")}
    names |= {("fetch", name) for name in plan.config.assets}
    names |= {("encode", name) for name in plan.parts.latents}
    names |= {("table", name) for name in plan.config.tables}
    names |= {("examples", name) for name in plan.config.tables if plan.has_examples(name)}
    for run in plan.runs.values():
        if run.reembedded:
            names.add(("reembed", run.name))
            continue
        if run.maker == "nothing":
            continue
        names |= {("train", f"{run.name}/{seed}") for seed in plan.config.claim_seeds}
    cells: list[CellKey] = [key for claim in plan.claims for keys in claim.cells for key in keys]
    for table in plan.config.tables:
        cells += plan.tables[table].all_cells
    for key in cells:
        run, cell = f"{key.method}/{key.variant}", f"{key.sampler}-{key.steps}"
        if not isinstance(plan.parts.protocols[key.protocol], LikelihoodProtocol):
            names.add(("sample", f"{run}/{cell}/{plan.image_set(key.protocol)}"))
        names.add(("score", f"{run}/{key.seed}/{cell}/{key.protocol}"))
        if getattr(plan.parts.protocols[key.protocol], "reference_latents", None):
            names.add(("reference", key.protocol))
    return {f"{stage}/{name}": plan.spec_text(stage, name) for stage, name in sorted(names)}


def moved(change: dict) -> set[str]:
    before = all_specs(make_plan(raw_config("demo")))
    after = all_specs(make_plan(merge(raw_config("demo"), change)))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def methods(**changes) -> dict:
    return {"overrides": {"methods": changes}}


def settings(**changes) -> dict:
    return {"overrides": {"settings": changes}}


def tables(**changes) -> dict:
    return {"overrides": {"tables": changes}}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            methods(scm={"loss": {"constant": 0.2}}),
            ["train/scm/base/*", "report/report"],
            id="a loss: its training",
        ),
        pytest.param(
            methods(decm={"loss": {"r_max": 0.03}}),
            ["train/decm/*", "report/report"],
            id="a loss with ablations: all of them",
        ),
        pytest.param(
            methods(meanflow={"train": {"optimizer": {"lr": 3.0e-3}}}),
            ["train/meanflow/*", "report/report"],
            id="a learning rate",
        ),
        pytest.param(methods(decm={"title": "DE-CM!"}), ["report/report"], id="a title: the report alone"),
        pytest.param(
            settings(samplers={"mix": {"switch": 0.25}}),
            [f"{stage}/{method}/*/mix-*" for stage in ("sample", "score") for method in ("decm", "decm-t2i")],
            id="a sampler: no training",
        ),
        pytest.param(
            tables(
                figure1={
                    "rows": {
                        "scm": {"steps": [1, 2, 4, 8, 50], "reported": {"fid": [3.34, 1.94] + [None] * 3}}
                    }
                }
            ),
            ["sample/scm/base/cm-8/*", "score/scm/base/0/cm-8/*", "table/figure1", "report/report"],
            id="one more NFE: its cell, the figure, and the report, which lists its points",
        ),
        pytest.param(
            tables(table3={"caption": "x"}),
            ["table/table3", "report/report"],
            id="a caption: table and report",
        ),
        pytest.param(
            tables(samples={"caption": "x"}),
            ["table/samples", "report/report"],
            id="a caption of a figure of samples: no real images",
        ),
        pytest.param(
            tables(samples={"classes": [3, 1]}),
            ["table/samples", "examples/samples"],
            id="other classes: other real images, no other samples",
        ),
        pytest.param(
            settings(protocols={"digits": {"feature_scale": 1.0}}),
            ["reference/digits", "score/*", "report/report"],
            id="a metric's unit: no image",
        ),
        pytest.param(
            settings(recipes={"digits": {"guidance": {"scale": 1.3}}}),
            [
                "train/*",
                *(
                    f"sample/teacher/base/{name}-*"
                    for name in ("euler-guided", "euler-lightningdit", "ucgm-lightningdit")
                ),
                "score/teacher/base/0/*",
                "report/report",
            ],
            id="guidance: every student",
        ),
        pytest.param(
            settings(backbones={"digits-classifier": {"features": 32}}),
            ["train/digits-classifier/*", "reference/*", "score/*"],
            id="the extractor: scores",
        ),
        pytest.param(
            methods(spare={"title": "t", "recipe": "digits", "loss": {"name": "cd"}}),
            ["train/spare/*"],
            id="an unused method: nothing of the others",
        ),
        pytest.param(
            {"seeds": [0, 1]},
            ["train/*", "sample/*", "score/*", "table/*", "claims/*", "report/report"],
            id="one more seed: new runs",
        ),
        pytest.param({"targets": ["table1"]}, ["report/report"], id="other default targets"),
    ],
)
def test_exactly_these_specs_move(change, expected):
    found = moved(change)
    stray = {name for name in found if not any(fnmatch.fnmatch(name, pattern) for pattern in expected)}
    idle = [pattern for pattern in expected if not fnmatch.filter(found, pattern)]
    assert not stray
    if change != {"seeds": [0, 1]}:
        assert not idle


def test_guidance_leaves_the_teacher_alone():
    """The teacher follows no guidance, so a student's change of it must not retrain the teacher."""
    found = moved(settings(recipes={"digits": {"guidance": {"scale": 1.3}}}))
    assert not fnmatch.filter(found, "train/teacher/*")
    assert not fnmatch.filter(found, "train/digits-*")


def test_another_seed_changes_no_existing_training():
    before = all_specs(make_plan(raw_config("demo")))
    after = all_specs(make_plan(merge(raw_config("demo"), {"seeds": [0, 1]})))
    assert all(after[name] == text for name, text in before.items() if name.startswith("train/"))


def test_specs_hold_no_paths(demo_plan):
    """A spec that named a folder would move with it."""
    elsewhere = make_plan(
        merge(raw_config("demo"), {"pathvars": {"results": "x", "latents": "y", "logs": "z"}})
    )
    before, after = all_specs(demo_plan), all_specs(elsewhere)
    assert {name for name in before if before[name] != after[name]} <= {"report/report"}
