"""Who teaches whom: the recipe's teacher, a teacher of one's own, and what cannot be."""

from __future__ import annotations

import pytest
from configs import behind, make_plan, raw_config, teacher_file, wildcard_values

from fewstep.config import ConfigError
from fewstep.config.base import merge
from fewstep.plan.targets import check


def demo(**methods):
    return make_plan(merge(raw_config("demo"), {"overrides": {"methods": methods}}))


@pytest.mark.parametrize("scale", ["paper_plan", "demo_plan"])
def test_a_method_may_name_its_own_teacher(scale, request):
    plan = request.getfixturevalue(scale)
    stage, student = plan.run("tcm-stage1"), plan.run("tcm")
    assert (stage.teacher, student.teacher) == ("teacher", "tcm-stage1")
    assert teacher_file(plan, "tcm/base") == [plan.model("tcm-stage1")]
    assert teacher_file(plan, "tcm-stage1/base") == [plan.model("teacher")]
    assert stage.recipe is student.recipe and student.has_teacher


def test_lightningdit_is_evaluated_as_its_authors_do(paper_plan):
    """250 times are 249 steps, with a shift of 0.3 both with and without guidance; bytes are rounded."""
    plan = paper_plan
    cells = [key for key in plan.tables["teachers"].all_cells if key.method == "teacher-lightningdit"]
    assert {(key.steps, key.protocol) for key in cells} == {(249, "lightningdit"), (249, "common")}
    assert {plan.parts.samplers[key.sampler].shift for key in cells} == {0.3}
    assert {plan.parts.samplers[key.sampler].guidance == "none" for key in cells} == {True, False}
    protocol = plan.parts.protocols["lightningdit"]
    assert (protocol.uint8, protocol.labels) == ("round", "random")
    assert plan.run("teacher-lightningdit").published.asset == plan.run("teacher").published.asset


def test_every_teacher_is_trained(demo_plan):
    trained = behind(demo_plan, "zoo")["train"]
    for name in ("tcm/base", "tcm-stage1/base", "teacher/base"):
        assert {"run": name, "seed": "0"} in trained


def test_from_scratch_at_paper_scale_and_from_the_teacher_in_the_demo(paper_plan, demo_plan):
    for name in ("imm", "shortcut", "ict"):
        assert paper_plan.run(name).teacher is None and not paper_plan.run(name).has_teacher
        assert demo_plan.run(name).teacher == "teacher"


def test_table1_trains_the_same_methods_in_the_demo_as_before(paper_plan, demo_plan):
    ours = {"lightningdit", "lightningdit-guided", "meanflow", "facm", "scm", "decm"}
    assert set(demo_plan.tables["table1"].runs) == ours
    assert set(paper_plan.tables["table1"].runs) == ours


@pytest.mark.parametrize(
    ("rows", "made"),
    [("all", {"imm", "shortcut"}), (["imm"], {"imm"}), ([], set())],
    ids=["all", "one", "none"],
)
def test_dear_rows_are_made_when_they_are_named(rows, made):
    """IMM and Shortcut cost twice as much as all other rows of table 1; DE-CM did not train them itself."""
    plan = make_plan({**raw_config(), "rows": rows})
    assert set(plan.tables["table1"].runs) & {"imm", "shortcut"} == made
    shown = {row.id: row.method for row in plan.spec("table", "table1").table.rows}
    assert {name for name in ("imm", "shortcut") if shown[name]} == made


def test_an_unknown_dear_row():
    with pytest.raises(ConfigError, match=r"rows: unknown name 'im'; did you mean 'imm'\?"):
        make_plan({**raw_config(), "rows": ["im"]})


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (
            {"tcm": {"teacher": "tcm-stage"}},
            "tcm.teacher: unknown name 'tcm-stage'; did you mean",
        ),
        ({"tcm": {"teacher": "tcm"}}, "tcm.teacher: tcm cannot teach itself"),
        ({"tcm-stage1": {"teacher": "tcm"}}, r"teacher: (\S+) <- \S+ <- \1 goes in a circle"),
        ({"tcm": {"teacher": "teacher"}}, "tcm.loss.boundary: needs a first stage"),
        ({"tcm": {"teacher": False}}, "tcm.loss.boundary: needs a first stage"),
        ({"shortcut": {"backbone": "lightningdit-digits-teacher"}}, "shortcut.loss: needs a backbone with"),
    ],
)
def test_what_cannot_be_is_refused(methods, words):
    with pytest.raises(ConfigError, match=words):
        demo(**methods)


def test_a_schedule_is_looked_at_where_it_is_asked_for():
    """Tables that are no target have it as well, but so has one who asks for something else."""
    changes = {"imm": {"loss": {"particles": 3}}, "shortcut": {"train": {"optimizer": {"warmup": 200}}}}
    plan = demo(**changes)
    told = (
        r"shortcut\.train: warmup 200 is not below steps 200\n"
        r".*imm\.loss\.particles: train\.global_batch_size 256 does not divide into groups of 3$"
    )
    check(plan, plan.metrics(plan.tables["table1"].all_cells[0]))
    check(plan, plan.file("page"))
    with pytest.raises(ConfigError, match=told):
        check(plan, plan.file("csv", table="zoo"))
    with pytest.raises(ConfigError, match=told):
        make_plan(merge(raw_config("demo"), {"overrides": {"methods": changes}, "targets": ["zoo"]}))
    model = plan.model("imm")
    with pytest.raises(ConfigError, match=rf"^target {model}: .*imm\.loss\.particles"):
        check(plan, model)
    with pytest.raises(ConfigError, match=r"shortcut\.train"):
        plan.spec("train", "shortcut/base/0")


def test_a_smooth_time_is_tuned_by_the_network_of_the_old_one(paper_plan, demo_plan):
    """By its own start it would learn nothing."""
    for plan in (paper_plan, demo_plan):
        tuned = plan.run("sd35-finetuned")
        teacher = plan.run(tuned.teacher or "")
        assert (tuned.backbone.time_scale, teacher.backbone.time_scale) == (20, 1000)


def test_live_captions_need_no_store():
    key = {"run": "decm-t2i/base", "seed": "0"}
    stored, live = (make_plan({**raw_config("demo"), "text": kind}) for kind in ("stored", "live"))
    names = {"encoder": "scenes-clip", "captions": "scenes"}
    files = stored.inputs("train", key)
    assert (files["text"], files["captions"], files["encoder"]) == ([stored.file("text", **names)], [], [])
    files = live.inputs("train", key)
    assert files["text"] == [live.spec_file("text", **names)]
    assert files["captions"] == [live.file("record", asset="scenes")]
    assert files["encoder"] == [live.model("scenes-clip")]
    made = [wildcard_values(behind(plan, "table2")["text"], "captions") for plan in (stored, live)]
    assert made == [{"scenes", "scenes-test"}, {"scenes-test"}]
    one, other = (plan.spec("train", "decm-t2i/base/0") for plan in (stored, live))
    assert one == other
