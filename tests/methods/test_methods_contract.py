"""What the trainer may rely on, for every method found."""

from __future__ import annotations

import copy
import re
from importlib import import_module

import pytest
import torch
from torch import nn

from fewstep import methods
from fewstep.config.objectives import TimeDistribution
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context, SummedLoss, loss_parts
from fewstep.core.rng import Streams

NAMES = list(methods.parameter_classes())
FLOWS = [name for name, params in methods.parameter_classes().items() if params.kind == "flow"]


SMALL = {"contrast": {"group": 4}, "scfd": {"warmup": 5, "channels": 32}}
"""What is changed for a batch of 8 and a training of 10 steps."""


def build(name, **given):
    return methods.build(methods.parameter_classes()[name](**SMALL.get(name, {}) | given))


def context(step=0, rows=slice(None), teacher=None, **given) -> Context:
    return Context(
        step=torch.tensor(step, dtype=torch.float64),
        steps=10,
        rng=Streams(3, step, 8, rows),
        null=3,
        jvp=value_and_tangent,
        teacher=teacher,
        **given,
    )


def run(name, net, batch, extra=None, step=0, **given):
    """Losses of all updates of a step; a moving average, where there is one, is the network as it is."""
    if build(name).target_decay is not None:
        given.setdefault("target", copy.deepcopy(net).requires_grad_(False))
    given.setdefault("players", players(name, net))
    averages = dict.fromkeys(build(name).averages, torch.tensor(0.5))
    ctx = context(step, extra=extra, averages=averages, **given)
    return [SummedLoss("", *loss_parts(update))(net, batch, ctx) for update in build(name).updates(step)]


def players(name, net):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return build(name).players(net)


def teacher(x, t, y):
    return torch.sin(x + t[:, None, None, None])


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_and_reach_every_parameter(name, tiny, tiny_batch):
    net, extra = tiny(name), build(name).extra()
    beside = players(name, net)
    modules = nn.ModuleList([net, *([extra] if extra else []), *beside.values()])
    trained = list(modules.parameters())
    terms = run(name, net, tiny_batch, extra, step=6, label_dropout=0.1, players=beside)
    total = sum(each.loss for each in terms)
    assert total.shape == () and torch.isfinite(total)
    gradients = torch.autograd.grad(total, trained)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(float(g.abs().sum()) > 0 for g in gradients)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("taught", [False, True])
def test_losses_are_pure(name, taught, tiny, tiny_batch):
    net, extra = tiny(name), build(name).extra()
    before, weights = torch.get_rng_state(), [w.clone() for w in net.state_dict().values()]
    given = {"extra": extra, "teacher": teacher if taught else None, "label_dropout": 0.3}
    first = [terms.loss.item() for terms in run(name, net, tiny_batch, **given)]
    torch.rand(3)
    second = [terms.loss.item() for terms in run(name, net, tiny_batch, **given)]
    assert first == second
    torch.set_rng_state(before)
    build(name).extra()
    run(name, net, tiny_batch, **given)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, net.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_logs_carry_no_graph(name, tiny, tiny_batch):
    for terms in run(name, tiny(name), tiny_batch, build(name).extra()):
        assert terms.logs
        assert all(value.shape == () and not value.requires_grad for value in terms.logs.values())


@pytest.mark.parametrize("name", NAMES)
def test_two_halves_of_a_batch_average_to_the_whole(name, tiny, tiny_batch):
    net, extra = tiny(name), build(name).extra()
    whole = run(name, net, tiny_batch, extra, label_dropout=0.3)
    parts = []
    for rows in (slice(0, 4), slice(4, 8)):
        half = Batch(tiny_batch.x1[rows], tiny_batch.x0[rows], tiny_batch.y[rows])
        parts.append(run(name, net, half, extra, rows=rows, label_dropout=0.3))
    for full, one, two in zip(whole, *parts, strict=True):
        assert (one.loss + two.loss).item() / 2 == pytest.approx(full.loss.item(), rel=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_methods_name_their_source(name):
    text = import_module(f"fewstep.methods.{name}.loss").__doc__
    assert re.search(r"arXiv \d{4}\.\d{5}", text)
    assert re.search(r"Eqs?\. \d+|sections? \d", text)
    assert "Mapping:" in text
    assert re.search(r"^Deviations from the paper:\n\n\* ", text, re.MULTILINE)


class TestDECM:
    def updates(self, step, **given):
        return [loss.__name__ for loss in build("decm", **given).updates(step)]

    def test_schedule(self):
        both = ["towards_data", "noise_to_noisy"]
        assert [self.updates(s) for s in range(4)] == [both, both[:1], both[:1], both]
        assert self.updates(1, freq=1) == both
        assert self.updates(0, n2n=False) == both[:1]
        assert self.updates(0, cm=False) == both
        assert self.updates(1, cm=False, fm=False) == both[1:]
        assert self.updates(3, cm=False, fm=False) == both[1:]

    def test_both_updates_share_the_time(self, tiny, tiny_batch):
        """With the same weights the anchor of the second update is that of the first."""
        first, second = run("decm", tiny("decm"), tiny_batch, teacher=teacher)
        assert torch.equal(first.logs["loss_fm"], second.logs["loss_fm"])

    def test_both_updates_ask_the_teacher_once_about_a_point(self, tiny, tiny_batch):
        asked = []

        def listening(x, t, y):
            asked.append(t)
            return teacher(x, t, y)

        ctx = context(teacher=listening)
        for loss in build("decm").updates(0):
            loss(tiny("decm"), tiny_batch, ctx)
        # x_t in both updates; x_r and the student's jump in the second
        assert len(asked) == 3
        other = Batch(tiny_batch.x0, tiny_batch.x1, tiny_batch.y)
        build("decm").updates(1)[0](tiny("decm"), other, ctx)
        assert len(asked) == 4

    @pytest.mark.parametrize("off", ["cm", "fm"])
    def test_switches(self, off, tiny, tiny_batch):
        loss, *_ = build("decm", **{off: False}).updates(0)
        logs = loss(tiny("decm"), tiny_batch, context()).logs
        assert f"loss_{off}" not in logs and len([k for k in logs if k.startswith("loss")]) == 1

    def test_rows_with_equal_ends_do_not_train(self, tiny, tiny_batch):
        """r = t = 0: gap and weight vanish."""
        params = {"cm": False, "fm": False, "r_max": 0.0}
        (loss,) = build("decm", **params, times=TimeDistribution(law="arctan", mean=99.0, std=1e-3)).updates(
            0
        )
        net = tiny("decm")
        terms = loss(net, tiny_batch, context(teacher=teacher))
        gradients = torch.autograd.grad(terms.loss, list(net.parameters()))
        assert terms.loss.item() < 1e-12
        assert all(float(g.abs().max()) < 1e-5 for g in gradients)


def test_labels_drop_without_a_teacher_only(tiny_batch):
    seen = []

    class Spy(nn.Module):
        def forward(self, x, t, s, y):
            seen.append(y)
            return x

    run("flow_matching", Spy(), tiny_batch, label_dropout=0.5)
    run("flow_matching", Spy(), tiny_batch, label_dropout=0.5, teacher=teacher)
    assert 0 < int((seen[0] == 3).sum()) < 8
    assert torch.equal(seen[1], tiny_batch.y)


def test_flow_matching_on_data_from_a_teachers_weights(tiny, tiny_batch):
    """As without a teacher, dropped labels included."""
    net = tiny("flow_matching")
    (alone,) = run("flow_matching", net, tiny_batch, label_dropout=0.5)
    (loss,) = build("flow_matching", data=True).updates(0)
    taught = loss(net, tiny_batch, context(label_dropout=0.5, teacher=teacher))
    assert torch.equal(taught.loss, alone.loss)


def test_expanded_times_are_t_or_two_minus_t(tiny_batch):
    seen = []

    class Spy(nn.Module):
        def forward(self, x, t, s, y):
            seen.append((t, s))
            return x

    for expanded in (False, True):
        (loss,) = build("flow_matching", expanded=expanded).updates(0)
        loss(Spy(), tiny_batch, context())
    (plain, _), (t, s) = seen
    assert torch.equal(t, s)
    assert 0 < int((t > 1).sum()) < 8
    torch.testing.assert_close(torch.where(t > 1, 2 - t, t), plain)


def test_scm_warms_up_the_tangent(tiny, tiny_batch):
    """At step 0 the tangent does not enter, from ``warmup`` on it does in full."""
    asked = []

    def tangent(net, inputs, tangents, y):
        value, derivative = value_and_tangent(net, inputs, tangents, y)
        asked.append(derivative)
        return value, derivative + 1

    def residual(step, shifted):
        (loss,) = build("scm", warmup=4, learned_weight=False).updates(step)
        ctx = context(0, teacher=teacher)
        ctx.step = torch.tensor(step, dtype=torch.float64)
        ctx.jvp = tangent if shifted else value_and_tangent
        return float(loss(tiny("scm"), tiny_batch, ctx).logs["residual_cm"])

    assert residual(0, True) == residual(0, False)
    assert residual(2, True) != residual(2, False)
    assert residual(4, False) == residual(9, False) != residual(2, False)


def test_contrast_is_within_groups_and_spreads_over_equal_captions():
    """By hand: three rows, of which two have one caption; then a second group that is far away."""

    class Net(nn.Module):
        def forward(self, images, y):
            directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
            return images.flatten(1), directions[y % 2], torch.tensor(2.0)

    images = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    batch = Batch(images[:, :, None, None], images[:, :, None, None], torch.tensor([0, 0, 1]))
    (loss,) = build("contrast", group=3).updates(0)
    terms = loss(Net(), batch, context())
    logits = 2 * images @ torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).T
    target = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    rows = -(target * logits.log_softmax(1)).sum(1).mean()
    columns = -(target * logits.log_softmax(0)).sum(0).mean()
    torch.testing.assert_close(terms.loss, (rows + columns) / 2)
    torch.testing.assert_close(terms.logs["accuracy"], torch.tensor(2 / 3))
    twice = Batch(batch.x1.repeat(2, 1, 1, 1), batch.x0.repeat(2, 1, 1, 1), torch.tensor([0, 0, 1, 2, 2, 3]))
    torch.testing.assert_close(loss(Net(), twice, context()).loss, terms.loss)
    with pytest.raises(ValueError, match=r"loss\.group: 4 rows"):
        loss(Net(), Batch(*(each[:4] for each in (twice.x1, twice.x0, twice.y))), context())


def test_scm_asks_for_its_weight(tiny, tiny_batch):
    with pytest.raises(ValueError, match=r"ctx\.extra"):
        run("scm", tiny("scm"), tiny_batch)
    assert build("scm", learned_weight=False).extra() is None
    assert torch.equal(build("scm").extra()(torch.rand(5)), torch.zeros(5))
