"""A loss or gradient that is not finite never reaches weights, moments or EMA, and is not hidden."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from tiny_pipeline import TinyPipeline

from fewstep.backbones.model_file import load_model
from fewstep.common.cli import run
from fewstep.common.files import read_lines
from fewstep.methods.cd.loss import CD
from fewstep.training.trainer import Trainer


def poison(monkeypatch, steps, where="loss") -> None:
    """Losses of these steps become NaN, or the batch does."""
    original = CD.loss

    def loss(self, net, batch, ctx):
        terms = original(self, net, batch, ctx)
        if int(ctx.step) in steps:
            terms = type(terms)(terms.loss * math.nan, terms.logs)
        return terms

    if where == "loss":
        monkeypatch.setattr(CD, "loss", loss)
        return
    from fewstep.data.loader import Loader

    rows = Loader.rows

    def spoilt(self, step, *rest):
        batch = rows(self, step, *rest)
        if step in steps and self._batch == 32:
            batch.x1[0, 0, 0, 0] = math.inf
        return batch

    monkeypatch.setattr(Loader, "rows", spoilt)


def snapshot(trainer: Trainer) -> list[torch.Tensor]:
    moments = [value for state in trainer.student.optimizer.state.values() for value in state.values()]
    return [
        each.clone()
        for each in [*trainer.net.state_dict().values(), *moments, *trainer.ema.tensors().values()]
    ]


@pytest.mark.parametrize("where", ["loss", "batch"])
def test_one_bad_update_is_skipped_and_counted(pipeline: TinyPipeline, tmp_path, monkeypatch, where):
    poison(monkeypatch, {3}, where)
    seen = []
    original = Trainer._update

    def watched(self, *given):
        seen.append(snapshot(self))
        return original(self, *given)

    monkeypatch.setattr(Trainer, "_update", watched)
    call = pipeline.train("cd", tmp_path)
    call()
    same = [len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in itertools.pairwise(seen)]
    assert [step for step, unchanged in enumerate(same) if unchanged] == [3]
    tensors, card = load_model(call.out)
    assert card["skipped_updates"] == 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    lines = [json.loads(line) for line in read_lines(call.outputs[1])]
    assert [line["step"] for line in lines if not math.isfinite(line["grad_norm"])] == [3]
    assert lines[-1]["step"] == 7


def test_too_many_in_a_row_stop_the_training(pipeline, tmp_path, monkeypatch):
    patient = pipeline.varied({"methods": {"cd": {"train": {"max_skipped_updates": 3}}}})
    poison(monkeypatch, {1, 4, 5, 6})
    call = patient.train("cd", tmp_path).more("--save-steps", "2")
    with pytest.raises(FloatingPointError) as error:
        call()
    text = str(error.value)
    assert "step 6: 3 non-finite updates in a row" in text
    assert "loss nan" in text
    assert str(next(tmp_path.glob("state-*/step-000000006"))) in text
    assert not any(path.exists() for path in call.outputs)


def test_the_last_good_state_was_saved_before_the_first_bad_update(pipeline, tmp_path, monkeypatch):
    """A state saved amid bad updates counts them, so that a restart does not begin at zero again."""
    patient = pipeline.varied({"methods": {"cd": {"train": {"max_skipped_updates": 3}}}})
    poison(monkeypatch, {4, 5, 6})
    call = patient.train("cd", tmp_path).more("--save-steps", "1")
    with pytest.raises(FloatingPointError, match="step 6: 3 non-finite"):
        call()
    with pytest.raises(FloatingPointError, match="step 6: 3 non-finite"):
        call()


@pytest.mark.parametrize(
    "error", [FloatingPointError("step 6: bad"), ValueError("step 6: bad"), OSError("step 6: bad")]
)
def test_a_shell_sees_one_line(capsys, error):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: step 6: bad\n"


def test_no_patience_stops_at_once_and_says_that_nothing_was_saved(pipeline, tmp_path, monkeypatch):
    hasty = pipeline.varied({"methods": {"cd": {"train": {"max_skipped_updates": 1}}}})
    poison(monkeypatch, {0})
    with pytest.raises(FloatingPointError, match=r"step 0: 1 non-finite .* last good state: none"):
        hasty.train("cd", tmp_path)()
