"""The test that a training makes of itself: it finds what it is for, and leaves no trace."""

from __future__ import annotations

import json

import pytest
import torch
from child_processes import ranks
from tiny_pipeline import TinyPipeline

from fewstep.backbones.model_file import load_model
from fewstep.core import dual


@pytest.mark.parametrize("method", ["decm", "meanflow", "scm", "teacher", "digits-classifier"])
def test_it_changes_no_weight(pipeline: TinyPipeline, tmp_path, method):
    call = pipeline.train(method, tmp_path / "tested")
    plain = pipeline.train(method, tmp_path / "plain").more("--no-self-test")
    call()
    plain()
    ours, theirs = (load_model(each.out)[0] for each in (call, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert call.outputs[1].read_bytes() == plain.outputs[1].read_bytes()
    assert load_model(plain.out)[1]["self_test"] is None
    found = load_model(call.out)[1]["self_test"]
    assert found["loss_finite"] is True and found["gradient_spread"] == 0
    if method == "digits-classifier":
        assert found["tangent_error"] is None
    elif method == "teacher":  # a fresh network, which is zero everywhere
        assert found["tangent_error"] == 0
    else:
        assert 0 < found["tangent_error"] < 1e-2


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_wrong_rule_is_found(pipeline, tmp_path, monkeypatch, precision):
    plan = pipeline.varied({"methods": {"cd": {"train": {"precision": precision}}}})
    call = plan.train("cd", tmp_path)
    with monkeypatch.context() as patch:
        patch.setitem(dual.RULES, torch.nn.functional.linear, weakened)
        with pytest.raises(ValueError, match=r"self-test: the fused tangent differs .* --no-self-test"):
            call()
        assert not list(tmp_path.glob("state-*")) and not call.out.exists()
    call()
    error = load_model(call.out)[1]["self_test"]["tangent_error"]
    assert error < (1e-2 if precision == "no" else 0.1)


def weakened(function, y, x, weight, bias):
    """Half of the tangent of a linear layer."""
    return 0.5 * function(x.tangent, weight)


def past_the_wrapper() -> None:
    """The losses see the bare network: each process trains on its own gradients."""
    from fewstep.core.wrappers import unwrap
    from fewstep.training.trainer import Trainer

    original = Trainer.__init__

    def build(self, *given):
        original(self, *given)
        self.net = unwrap(self.net)

    Trainer.__init__ = build


def test_gradients_that_nobody_reduces_are_found(pipeline, tmp_path):
    call = pipeline.train("cd", tmp_path)
    assert ranks(call, tmp_path, fault=past_the_wrapper) == [1, 1]
    text = (tmp_path / "rank0.log").read_text()
    assert "error: self-test: gradients differ between processes by" in text, text
    assert ranks(call.more("--no-self-test"), tmp_path, fault=past_the_wrapper) == [0, 0]


def test_two_processes_agree(pipeline, tmp_path):
    call = pipeline.train("decm", tmp_path)
    assert ranks(call, tmp_path) == [0, 0]
    assert json.dumps(load_model(call.out)[1]["self_test"]["gradient_spread"]) == "0.0"
