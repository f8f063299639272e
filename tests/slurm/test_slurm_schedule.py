"""When all jobs of a plan are done."""

from __future__ import annotations

import pytest
from configs import make_plan, raw_config

from fewstep.config.specs import CostLine, CostsSpec, PlannedJob
from fewstep.environment.durations import days, tasks
from fewstep.environment.profile import Profile
from fewstep.environment.schedule import Task, critical_path, finish


def test_one_after_the_other_and_side_by_side():
    chain = [Task(10, 1), Task(5, 1, [0]), Task(1, 1, [1])]
    assert critical_path(chain) == finish(chain, 1) == finish(chain, 8) == 16
    wide = [Task(10, 1) for _ in range(4)]
    assert [finish(wide, count) for count in (1, 2, 3, 4, 5)] == [40, 20, 20, 10, 10]
    assert critical_path(wide) == 10
    assert finish([], 1) == critical_path([]) == 0


def test_the_longest_chain_starts_first():
    """Of three ready tasks, on two devices, the one that others wait for is not the last."""
    given = [Task(4, 1), Task(4, 1), Task(1, 1), Task(7, 1, [2])]
    assert finish(given, 2) == critical_path(given) == 8


def test_a_small_job_runs_beside_a_wide_one():
    given = [Task(10, 6), Task(10, 4), Task(3, 2)]
    assert finish(given, 8) == 20
    assert finish(given, 12) == 10


def test_jobs_without_devices_wait_only_for_jobs():
    given = [Task(10, 1), Task(5, 0), Task(5, 0), Task(1, 0, [0, 1])]
    assert finish(given, 1) == 11


def test_what_cannot_end():
    with pytest.raises(ValueError, match="a job needs 8 devices, of 4"):
        finish([Task(1, 8)], 4)
    with pytest.raises(ValueError, match="jobs wait for each other"):
        finish([Task(1, 1, [1]), Task(1, 1, [0])], 4)


@pytest.fixture
def spec() -> CostsSpec:
    """Two trainings of 80 GPU-hours, what they read, and a table of them."""
    operations = make_plan(raw_config()).config.costs.operations
    lines = [
        CostLine(rule=rule, device=device)
        for rule, device in (("fetch", "cpu"), ("train", "gpu"), ("table", "cpu"))
    ]
    jobs = [
        PlannedJob(line=0),
        *(PlannedJob(line=1, after=[0]) for _ in range(2)),
        PlannedJob(line=2, after=[1, 2]),
    ]
    return CostsSpec(lines=lines, jobs=jobs, networks={}, operations=operations, start=0.0, restart=1800.0)


SECONDS = [0.0, 80 * 3600.0, 0.0]


def profile(**entries) -> Profile:
    return Profile({"set-resources": {"train": {"gpu": 8, "runtime": 1440}}, **entries})


def test_gpus_of_the_profile(spec):
    assert [task.devices for task in tasks(spec, SECONDS, profile(), 64)] == [0, 8, 8, 0]
    assert tasks(spec, SECONDS, profile(), 64)[1].seconds == 10 * 3600
    # Ten hours for each of two on eight GPUs; more than sixteen are of no use.
    found = days(spec, SECONDS, profile())
    assert found == pytest.approx(
        {"8 GPUs": 20 / 24, "64 GPUs": 10 / 24, "512 GPUs": 10 / 24, "any number of GPUs": 10 / 24}
    )


def test_time_limits_and_fewer_gpus(spec):
    limited = profile(**{"set-resources": {"train": {"gpu": 8, "runtime": 180}}})
    assert tasks(spec, SECONDS, limited, 64)[1].seconds == 10 * 3600 + 3 * 1800
    assert tasks(spec, SECONDS, limited, 4)[1].seconds == 20 * 3600 + 6 * 1800
    assert list(days(spec, SECONDS, profile(resources=["gpu=1"]))) == ["1 GPUs", "any number of GPUs"]


def test_without_gpus_cores_count(spec):
    cpu = [line.model_copy(update={"device": "cpu"}) for line in spec.lines]
    found = days(spec.model_copy(update={"lines": cpu}), [0.0, 3600.0, 0.0], profile(cores=2))
    assert found == pytest.approx({"2 cores": 1 / 24, "any number of cores": 1 / 24})


def test_the_plan_of_table_1():
    """Every job waits for jobs that are there, and specs say what each costs."""
    spec = make_plan(raw_config() | {"targets": ["table1"]}).spec("costs", "costs")
    rules = [spec.lines[job.line].rule for job in spec.jobs]
    for number, job in enumerate(spec.jobs):
        assert number not in job.after
        if rules[number] == "score":
            assert "sample" in {rules[other] for other in job.after}
    (table,) = [number for number, rule in enumerate(rules) if rule == "table"]
    assert {rules[other] for other in spec.jobs[table].after} == {"score"}
