"""Networks trained in turns of their own beside the student: in every layout, saved and resumed."""

from __future__ import annotations

import signal

import pytest
import torch
from child_processes import ranks, signal_at_step
from safetensors.torch import load_file
from torch import nn
from trained_files import close, curve, same, states

from fewstep.bench.estimate import state_numbers
from fewstep.config.settings import Optimizer
from fewstep.core.method import LossOutput, SummedLoss, Turn, at_rest, kind_of_step
from fewstep.core.wrappers import resting
from fewstep.training.players import Measured, Player, Skips
from fewstep.training.state import FINISHED, STOPPED
from fewstep.training.trainer import Trainer, start_accelerator

SHARDED = ("--shard", "fsdp2")


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    """A training in one process, and what became of its players."""
    call = pipeline.train("afm", tmp_path_factory.mktemp("whole"))
    call()
    return call


def test_turns_have_their_own_rate_and_norm(whole):
    lines = [line for line in curve(whole.outputs[1]) if line["step"] == 7]
    assert [line["update"] for line in lines] == [0, 1]
    assert lines[0]["lr"] != lines[1]["lr"] and "r1" in lines[0] and "loss_transport" in lines[1]
    assert all(line["grad_norm"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (1, ("--device-batch", "8")),
        (1, ("--device-batch", "2")),
        (1, ("--checkpoint-blocks", "--compile-blocks", "eager")),
        (2, ()),
        (2, ("--device-batch", "8")),
        (2, (*SHARDED, "--device-batch", "8", "--checkpoint-blocks")),
    ],
)
def test_every_layout_trains_alike(pipeline, whole, tmp_path, count, options):
    call = pipeline.train("afm", tmp_path).more(*options)
    assert ranks(call, tmp_path, count) == [0] * count, (tmp_path / "rank0.log").read_text()
    close(call, whole)


@pytest.mark.parametrize(
    "options", [(), SHARDED, ("--checkpoint-blocks",), ("--compile-blocks", "aot_eager")]
)
def test_a_penalty_on_gradients_trains_alike(pipeline, tmp_path, options):
    """The discriminator of `scfd` has convolutions, and its rows come in groups."""
    calls = [pipeline.train("scfd", tmp_path / name) for name in ("one", "two")]
    for call, count, given in zip(calls, (1, 2), ((), options), strict=True):
        folder = call.outputs[0].parent
        folder.mkdir(exist_ok=True)
        assert ranks(call.more(*given), folder, count) == [0] * count, (folder / "rank0.log").read_text()
    close(*reversed(calls))


def test_a_classifier_guides_the_generator(pipeline, tmp_path):
    """A third network, beside a generator whose blocks repeat, in every layout."""
    deep = {"backbones": {"lightningdit-digits": {"repeats": 2}}}
    guided = pipeline.varied(
        {"methods": {"afm": {"loss": {"classifier": {"weight": 0.5}}}}, "settings": deep}
    )
    calls = {name: guided.train("afm", tmp_path / name) for name in ("one", "ddp", "fsdp2")}
    for (name, call), count, given in zip(calls.items(), (1, 2, 2), ((), (), SHARDED), strict=True):
        (tmp_path / name).mkdir(exist_ok=True)
        told = tmp_path / name / "rank0.log"
        assert ranks(call.more(*given), tmp_path / name, count) == [0] * count, told.read_text()
        close(call, calls["one"])
    lines = [line for line in curve(calls["one"].outputs[1]) if line["step"] == 1]
    assert [set(line) & {"loss_ce", "r1", "loss_classifier"} for line in lines] == [
        {"loss_ce"},
        {"r1"},
        {"loss_classifier"},
    ]


@pytest.mark.parametrize("method", ["afm", "scm", "dumo"])
def test_the_plan_counts_what_a_state_holds(pipeline, tmp_path, method):
    """Of a player, of a module beside the network, of a target network: in bytes, but for a few counters."""
    call = pipeline.train(method, tmp_path)
    call.more("--keep-state")()
    files = (tmp_path / FINISHED).glob("step-*/*.safetensors")
    held = sum(tensor.numel() for file in files for tensor in load_file(file).values())
    run = pipeline.plan.run(method)
    assert state_numbers(run.backbone, run.loss) == pytest.approx(held, rel=0.02)


def penalised() -> None:
    """The discriminator's turn has the gradient of a gradient, through attention too."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from fewstep.methods.afm.loss import AFM

    original = AFM.discriminate

    def discriminate(self, net, batch, ctx):
        x = batch.x1.clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            logits = ctx.players["discriminator"](x, torch.ones_like(x[:, 0, 0, 0]), batch.y)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        terms = original(self, net, batch, ctx)
        return LossOutput(terms.loss + gradient.square().flatten(1).sum(1).mean(), terms.logs)

    AFM.discriminate = discriminate
    AFM.updates = lambda self, _: (Turn("discriminator", self.discriminate, second_order=True), self.generate)


def test_second_derivatives_in_every_layout(pipeline, tmp_path):
    alone = pipeline.train("afm", tmp_path / "alone")
    (tmp_path / "alone").mkdir(exist_ok=True)
    assert ranks(alone, tmp_path / "alone", 1, fault=penalised) == [0]
    for name, options in {"ddp": (), "fsdp2": SHARDED}.items():
        call = pipeline.train("afm", tmp_path / name).more(*options)
        assert ranks(call, tmp_path / name, fault=penalised) == [0, 0], (
            tmp_path / name / "rank0.log"
        ).read_text()
        close(call, alone)


def test_resumed_is_uninterrupted_to_the_last_bit(pipeline, whole, tmp_path):
    call = pipeline.train("afm", tmp_path)
    stopped = ranks(call, tmp_path, 1, fault=signal_at_step, step=4, number=signal.SIGUSR1)
    assert stopped == [STOPPED] and states(call) == ["step-000000005"]
    call()
    same(call, whole)


def test_another_number_of_processes_goes_on(pipeline, whole, tmp_path):
    call = pipeline.train("afm", tmp_path)
    assert ranks(call, tmp_path, 1, fault=signal_at_step, step=4, number=signal.SIGUSR1) == [STOPPED]
    assert ranks(call.more(*SHARDED), tmp_path, 2) == [0, 0], (tmp_path / "rank0.log").read_text()
    close(call, whole)


def test_only_the_one_whose_turn_it_is_changes(pipeline, tmp_path, monkeypatch):
    """And the averages follow the student alone."""
    original = Trainer._update

    def update(self, turn, slices):
        modules = {"": self.net, "discriminator": slices[0][1].players["discriminator"]}
        before = {name: [w.clone() for w in each.parameters()] for name, each in modules.items()}
        average = int(self.ema.updates)
        values = original(self, turn, slices)
        changed = {
            name
            for name, each in modules.items()
            if any(not torch.equal(a, b) for a, b in zip(before[name], each.parameters(), strict=True))
        }
        assert changed == {turn.player if isinstance(turn, Turn) else ""}
        assert int(self.ema.updates) - average == (not isinstance(turn, Turn))
        return values

    monkeypatch.setattr(Trainer, "_update", update)
    pipeline.train("afm", tmp_path)()


def test_a_turn_that_is_not_finite_is_skipped_alone(pipeline, tmp_path, monkeypatch):
    """Every one of the discriminator's: they stop the training though the student's are good."""
    from fewstep.methods.afm.loss import AFM

    original = AFM.discriminate
    monkeypatch.setattr(AFM, "discriminate", lambda *given: LossOutput(original(*given).loss * torch.nan, {}))
    patient = pipeline.varied({"methods": {"afm": {"train": {"max_skipped_updates": 5}}}})
    with pytest.raises(FloatingPointError, match="step 4: 5 non-finite updates in a row"):
        patient.train("afm", tmp_path)()


def test_a_network_at_rest_passes_gradients_on():
    net, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    with resting([critic]):
        critic(net(torch.ones(3, 2))).sum().backward()
    assert net.weight.grad is not None and critic.weight.grad is None
    assert all(weight.requires_grad for weight in critic.parameters())


def test_names_of_turns():
    def loss(*_):
        raise AssertionError

    loss.__qualname__ = "loss"
    turn = Turn("critic", SummedLoss("both", loss, loss))
    assert kind_of_step((turn, loss)) == ("critic: both", "loss")
    from types import SimpleNamespace

    context = SimpleNamespace(players={"critic": "C", "other": "O"}, extra="E")
    assert at_rest(turn, "N", context) == ["N", "E", "O"]
    assert at_rest(loss, "N", context) == ["C", "O"]


def test_measured_averages_start_without_bias():
    measured, device = Measured({"a": 0.9}, torch.device("cpu")), torch.device("cpu")
    yes, no = torch.tensor(True, device=device), torch.tensor(False, device=device)
    assert measured.values()["a"] == 0
    odd = [(torch.nan, no), (torch.nan, yes), (torch.inf, yes), (3.0, no)]
    for value, taken in ((2.0, yes), *odd, (4.0, yes)):
        measured.update("a", torch.tensor(value), taken)
    assert float(measured.values()["a"]) == pytest.approx((0.9 * 2 + 4) / 1.9)


def test_skips_are_counted_for_each():
    skips, device = Skips(2, torch.device("cpu")), torch.device("cpu")
    for player, finite in ((0, True), (1, False), (0, False), (1, False), (0, True), (1, False)):
        skips.count(player, torch.tensor(finite, device=device))
    assert skips.read() == (4, [0, 3], [1, 3])
    skips.restore(4, [0, 3])
    skips.count(1, torch.tensor(False))
    assert skips.read() == (5, [0, 4], [0, 4])


def test_a_loss_scaler_serves_two_optimizers(tmp_path, monkeypatch):
    """As fp16 has one on a GPU: both go as without it, and what overflows is skipped alone."""
    found = {}
    for scaled in (False, True):
        accelerator = start_accelerator("no", tmp_path)
        if scaled:  # accelerate has none on a CPU
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            accelerator.native_amp = True
            monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
        torch.manual_seed(0)
        modules = {name: nn.Linear(2, 2) for name in ("net", "critic")}
        options = Optimizer(lr=0.1, clip=0.5)
        players = {name: Player(accelerator, options, {name: module}) for name, module in modules.items()}
        x, steps = torch.randn(8, 2), []
        for step in range(6):
            for turn, player in players.items():
                broken = torch.inf if (step, turn) == (3, "critic") else 1.0
                accelerator.backward((players[turn].modules[turn](x) * broken).square().mean())
                norm = player.clip()
                player.update(norm.isfinite())
                weights = [weight for module in modules.values() for weight in module.parameters()]
                steps.append((norm, [weight.detach().clone() for weight in weights]))
        found[scaled] = steps
        if scaled:
            assert float(accelerator.scaler.get_scale()) == 2.0**9  # halved once
        accelerator.end_training()
    for (norm, weights), (plain_norm, plain) in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(norm, plain_norm, equal_nan=True)
        torch.testing.assert_close(weights, plain)
