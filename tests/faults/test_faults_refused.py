"""What a stage refuses is not tried again, until something changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from configs import ROOT
from tiny_pipeline import TinyPipeline, replaced


@pytest.fixture
def start(pipeline: TinyPipeline, tmp_path):
    """Runs the launcher on a call of score with a spec that can be changed; returns status and messages."""
    call = pipeline.score("cd", "cm-2", tmp_path)
    images = tmp_path / "images.tar"
    images.write_bytes(Path(call.arguments[call.arguments.index("--images") + 1]).read_bytes())
    call = replaced(call, "--images", str(images))

    def run(*words: str, call=call) -> tuple[int, str]:
        command = [sys.executable, "-m", "fewstep.launch", *words, f"fewstep.{call.stage}", *call.arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        return done.returncode, done.stderr

    run.call, run.images = call, images
    return run


def test_a_refusal_is_repeated_until_an_input_changes(start):
    content = start.images.read_bytes()
    start.images.write_bytes(content[:1600] + bytes([content[1600] ^ 1]) + content[1601:])
    status, first = start()
    kept = start.call.out.with_name(f"{start.call.out.name}.refused")
    assert status == 1 and "images.tar: damaged" in first and "refused before" not in first
    status, again = start()
    assert (
        status == 1
        and first.splitlines()[-1] in again
        and f"refused before; to try again, remove {kept}" in again
    )
    assert "refused before" not in start("--threads", "1", "--gpus", "1")[1]  # another call
    start.images.write_bytes(content)
    status, text = start()
    assert status == 0, text
    assert start.call.out.exists() and not kept.exists()


def test_a_first_attempt_tries_and_a_retry_repeats(start):
    """What was wrong may lie in a file that the call does not name."""
    start.images.write_bytes(start.images.read_bytes()[:-12_000])  # a tar may end in 10 kB of padding
    for attempt, repeated in (("1", False), ("2", True), ("3", True), ("1", False)):
        status, text = start("--attempt", attempt)
        assert status == 1 and "images.tar" in text and ("refused before" in text) is repeated


@pytest.mark.parametrize(
    "error", ["OSError(28, 'No space left on device')", "KeyError('x')", "SystemExit(143)"]
)
def test_what_may_pass_is_not_remembered(tmp_path, error):
    """A full disk, a mistake in the program, a signal."""
    (tmp_path / "stage.py").write_text(
        f"from fewstep.common.cli import run\ndef main(argv):\n    raise {error}\nrun(main)\n"
    )
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "fewstep.launch", "stage", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and not list(tmp_path.glob("*.refused"))


def test_every_stage_whose_retry_costs_goes_through_the_launcher():
    """All that are retried, but a download: its refusals may be the network's."""
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        for rule in re.split(r"^rule ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if "python -m fewstep." in rule and "retries: 0" not in rule and not rule.startswith("fetch:"):
                assert "-m fewstep.launch" in rule and "--attempt {resources.attempt}" in rule, rule


def test_a_changed_spec_is_tried(start):
    spec = Path(start.call.arguments[1])
    good = spec.read_text()
    raw = json.loads(good)
    raw["sample"]["steps"] = 3
    del raw["digest"]
    spec.write_text(json.dumps(raw))
    assert "steps: these images have 2, but 3" in start()[1]
    assert "refused before" in start()[1]
    spec.write_text(good)
    assert start()[0] == 0


def test_a_missing_file_is_not_remembered(start):
    start.images.unlink()
    for _ in range(2):
        status, text = start()
        assert status == 1 and "images.tar" in text and "refused before" not in text
