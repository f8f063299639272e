"""Comparison of what two trainings wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_pipeline import Call

from fewstep.backbones.model_file import load_model
from fewstep.common.files import read_lines, sha256

# Gradients are summed in another order, and Adam divides them by their own size.
CLOSE = {"rtol": 2e-3, "atol": 2e-5}


def curve(path: Path) -> list[dict]:
    return [json.loads(line) for line in read_lines(path)]


def close(call: Call, reference: Call) -> None:
    """Equal up to rounding: weights and curve."""
    ours, theirs = (load_model(each.out)[0] for each in (call, reference))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )
    lines, expected = curve(call.outputs[1]), curve(reference.outputs[1])
    assert [(line["step"], line["update"]) for line in lines] == [
        (line["step"], line["update"]) for line in expected
    ]
    for line, other in zip(lines, expected, strict=True):
        assert line.keys() == other.keys()
        assert line == pytest.approx(other, rel=2e-3, abs=2e-5)
    # Before the first update only the order of the sum differs.
    assert lines[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    assert lines[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)


def same(call: Call, other: Call) -> None:
    """Equal to the last bit: the file's weights and card, and the curve's text."""
    assert sha256(call.outputs[0]) == sha256(other.outputs[0])
    assert call.outputs[1].read_bytes() == other.outputs[1].read_bytes()


def states(call: Call) -> list[str]:
    """Names of the saved states of an unfinished training."""
    return sorted(path.name for path in call.out.parent.glob("state-*/step-*"))
