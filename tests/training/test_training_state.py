"""A saved state holds everything, in any number of files, and is verified."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewstep.config.settings import ConstantEma
from fewstep.training import state
from fewstep.training.ema import Ema
from fewstep.training.state import Progress, TrainingState, damage

OWNER = {"spec": "1", "teacher": None}


class Net(nn.Module):
    """A number, a matrix, a parameter that takes no gradient, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.matrix = nn.Parameter(torch.ones(3, 5))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))


class Training:
    """Two modules, an optimizer, an average and a loss scaler."""

    def __init__(self, folder, optimizer=torch.optim.AdamW) -> None:
        self.modules = {"net": Net(), "extra": nn.Linear(2, 2)}
        weights = [weight for module in self.modules.values() for weight in module.parameters()]
        self.optimizer = optimizer([weight for weight in weights if weight.requires_grad], lr=0.1)
        self.ema = Ema(self.modules["net"], ConstantEma(kind="constant", decay=0.9))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**11, growth_interval=2)
        self.progress = Progress()
        accelerator = SimpleNamespace(
            is_main_process=True,
            num_processes=1,
            scaler=self.scaler,
            device=torch.device("cpu"),
            wait_for_everyone=lambda: None,
        )
        self.state = TrainingState(accelerator, folder, OWNER, self.progress)
        self.state.attach(self.modules, dict.fromkeys(self.modules, self.optimizer), {"ema": self.ema})

    def step(self) -> None:
        net, extra = self.modules["net"], self.modules["extra"]
        loss = (net.scale * net.matrix).sin().sum() + extra(torch.ones(2) * self.progress.step).square().sum()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        net.count += 1
        self.ema.update(net)
        self.progress.step += 1

    def everything(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.state._tensors().items()}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.RAdam])
@pytest.mark.parametrize("bytes_", [8, 2**30])
def test_restored_goes_on_as_if_never_stopped(tmp_path, monkeypatch, optimizer, bytes_):
    monkeypatch.setattr(state, "FILE_BYTES", bytes_)
    training = Training(tmp_path, optimizer)
    for _ in range(5):
        training.step()
    training.progress.guidance_eta, training.progress.self_test = 1 / 3, {"loss_finite": True}
    training.state.save()
    torch.manual_seed(1)
    other = Training(tmp_path, optimizer)
    saved = other.state.newest()
    assert saved is not None and saved.name == "step-000000005"
    assert (len(list(saved.glob("*.safetensors"))) > 1) == (bytes_ == 8)
    other.state.restore(saved)
    assert other.progress == training.progress and other.scaler.state_dict() == training.scaler.state_dict()
    assert other.ema.updates == 5 and training.scaler.get_scale() > 2.0**11
    for _ in range(3):
        training.step()
        other.step()
    ours, theirs = training.everything(), other.everything()
    assert ours.keys() == theirs.keys()
    assert {
        "optimizer.exp_avg.net.matrix",
        "optimizer.step.net.scale",
        "ema.count",
        "extra.bias",
    } <= ours.keys()
    assert "optimizer.step.net.frozen" not in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_states_are_kept(tmp_path):
    training = Training(tmp_path)
    for _ in range(4):
        training.step()
        training.state.save()
    assert [path.name for path in training.state.saved()] == ["step-000000003", "step-000000004"]
    assert not any(damage(path) for path in training.state.saved())


def test_a_state_that_was_not_written_correctly_replaces_none(tmp_path, monkeypatch):
    training = Training(tmp_path)
    training.step()
    training.state.save()
    training.step()
    monkeypatch.setattr(state, "damage", lambda folder: f"{folder}/x: checksum differs")
    with pytest.raises(OSError, match=r"checksum differs: the state was not written correctly"):
        training.state.save()
    assert [path.name for path in training.state.saved()] == ["step-000000001"]


def test_the_record_says_what_the_state_belongs_to(tmp_path):
    training = Training(tmp_path)
    training.state.save()
    (path,) = training.state.saved()
    record = json.loads((path / "state.json").read_text())
    assert record["owner"] == OWNER
    assert set(record["files"]) == {file.name for file in path.glob("*.safetensors")}
