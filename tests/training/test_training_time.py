"""The time of a training on its devices: recorded beside the model, over all its parts."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace

import pytest
import torch
from child_processes import child, ranks, signal_at_step
from tiny_pipeline import Call, TinyPipeline

from fewstep.common import device_time
from fewstep.common.device_time import DeviceTime, Part, measured_time, processor, read_time
from fewstep.reporting.page import training_time
from fewstep.training.state import STOPPED

HOUR = Part(device="NVIDIA H100", gpu=True, count=8, seconds=3600.0, memory=40.0)


def recorded(call: Call) -> DeviceTime:
    found = read_time(call.out.with_name("time.json"))
    assert found is not None
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_of_two_parts(pipeline: TinyPipeline, tmp_path, number):
    """Killed or asked to stop, and started again; the next training of the same model starts from nothing.

    Killed before its first saved state it begins anew: the steps that are lost are counted, too.
    """
    call = pipeline.train("cd", tmp_path)
    status = child(call, tmp_path / "log", signal_at_step, step=3, number=number)
    assert status == (STOPPED if number == signal.SIGTERM else -number), (tmp_path / "log").read_text()
    states = list(call.out.parent.glob("state-*/step-*"))
    assert bool(states) == (number == signal.SIGTERM)
    first = recorded(call)
    assert not first.finished and len(first.parts) == 1
    call()
    both = recorded(call)
    assert both.finished and both.parts[0] == first.parts[0] and len(both.parts) == 2
    assert both.seconds == first.parts[0].seconds + both.parts[1].seconds > 0
    for part in both.parts:
        assert (part.device, part.gpu, part.unit) == (processor(), False, "core-hours")
        assert part.count >= 1 and 0.05 < part.memory < 50
    assert both.parts[1].count == torch.get_num_threads()
    call()
    assert len(recorded(call).parts) == 1


def test_of_another_training_nothing_is_kept(pipeline, tmp_path):
    path = tmp_path / "time.json"
    call = pipeline.train("cd", tmp_path)
    with pytest.raises(KeyboardInterrupt), measured_time(path, "another", HOUR, lambda: 1.0):
        raise KeyboardInterrupt
    assert read_time(path).parts[0].hours >= 8 and not read_time(path).finished
    call()
    assert len(recorded(call).parts) == 1


def test_two_processes_have_the_cores_of_both(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path)
    assert ranks(call, tmp_path) == [0, 0], (tmp_path / "rank0.log").read_text()
    (part,) = recorded(call).parts
    assert part.count % 2 == 0


def test_it_is_written_while_the_training_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(device_time, "INTERVAL", 0.001)
    path, again, calls = tmp_path / "time.json", threading.Event(), []

    def memory() -> float:
        calls.append(len(calls))
        if len(calls) > 2:
            again.set()
        return len(calls)

    with measured_time(path, "one", HOUR, memory):
        assert again.wait(60)
        assert not read_time(path).finished
    assert read_time(path).finished and read_time(path).memory == len(calls)


def test_hours_are_those_of_every_device():
    time = DeviceTime("one", True, [HOUR, HOUR, Part("a processor", False, 2, 1800.0, 3.0)])
    assert (time.hours("GPU-hours"), time.hours("core-hours")) == (16.0, 1.0)
    assert (time.seconds, time.memory) == (9000.0, 40.0)


def test_a_sentence_tells_the_parts_and_the_memory_where_it_is_known():
    failed = replace(HOUR, memory=0.0)
    assert training_time(DeviceTime("one", True, [failed, HOUR])) == (
        "trained for 2.0 h in 2 parts, lost steps included, on 8 NVIDIA H100: 16 GPU-hours, 40.0 GB of memory"
    )
    assert training_time(DeviceTime("one", False, [failed])) == (
        "not to its end, trained for 60 min on 8 NVIDIA H100: 8 GPU-hours"
    )


@pytest.mark.parametrize("damage", ["", "{", '{"training": "one"}', "[]", "minus"])
def test_a_damaged_record_is_refused_by_readers_and_begun_anew_by_trainings(tmp_path, capsys, damage):
    path = tmp_path / "time.json"
    with measured_time(path, "one", HOUR, lambda: 1.0):
        pass
    content = json.loads(path.read_text())
    content["parts"][0]["seconds"] = -1
    path.write_text(json.dumps(content) if damage == "minus" else damage)
    with pytest.raises(ValueError, match=r"time\.json: not the time of a training; remove it"):
        read_time(path)
    with measured_time(path, "one", HOUR, lambda: 1.0):
        pass
    assert len(read_time(path).parts) == 1
    assert "the time of earlier parts is not counted" in capsys.readouterr().out


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(device_time, "write_text", full)
    with measured_time(tmp_path / "time.json", "one", HOUR, lambda: 1.0):
        done = True
    assert done and "the time of this training was not written" in capsys.readouterr().out


def test_no_record_and_one_without_parts(tmp_path):
    path = tmp_path / "time.json"
    assert read_time(path) is None
    path.write_text(json.dumps({"training": "one", "finished": False, "parts": []}))
    assert read_time(path) is None
