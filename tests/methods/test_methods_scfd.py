"""Self-corrected flow distillation against its equations, written as the paper has them: noise at tau = 1."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from fewstep.backbones import build as build_network
from fewstep.config.backbones import LightningDiT
from fewstep.config.settings import Sampler
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context, Turn
from fewstep.core.rng import Streams
from fewstep.evaluation.samplers import integrate
from fewstep.methods import build
from fewstep.methods.scfd.discriminator import Discriminator
from fewstep.methods.scfd.params import SCFDParams

ROWS = 8
NETWORK = LightningDiT(shape=[2, 4, 4], classes=3, depth=1, width=8, heads=1, patch=2, target_time=False)
PARAMS = SCFDParams(channels=64, largest=16)


def teacher(x, t, y):
    return torch.sin(x + t[:, None, None, None]).detach()


@pytest.fixture
def parts(tiny, tiny_batch):
    """Network, its average, discriminator and batch, in float64."""
    net = tiny("scfd").double()
    average = copy.deepcopy(net).requires_grad_(False)
    with torch.no_grad():
        for weight in average.parameters():
            weight.mul_(1.1)
    torch.manual_seed(5)
    discriminator = build(PARAMS).players(build_network(NETWORK))["discriminator"].double()
    batch = Batch(tiny_batch.x1.double(), tiny_batch.x0.double(), tiny_batch.y)
    return net, average, discriminator, batch


def context(average, discriminator, step=0, taught=True):
    return Context(
        step=torch.tensor(step, dtype=torch.float64),
        steps=10,
        rng=Streams(3, step, ROWS, slice(None)),
        null=3,
        jvp=value_and_tangent,
        teacher=teacher if taught else None,
        target=average,
        players={"discriminator": discriminator},
    )


def column(t):
    return t[:, None, None, None]


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize("step", [0, 1000])
def test_the_students_loss_is_that_of_the_paper(step, taught, parts):
    net, average, discriminator, batch = parts
    clean, noise, y = batch.x1, batch.x0, batch.y
    draws = {
        name: Streams(3, step, ROWS, slice(None)).uniform(name).double() for name in ("t", "ahead", "behind")
    }
    tau = 1 - draws["t"]

    def velocity(of, x, tau):  # of the paper: from data to noise
        return -of(x, 1 - tau, torch.ones_like(tau), y)

    def denoised(of, x, tau):
        return x - column(tau) * velocity(of, x, tau)

    def huber(a, b):
        return ((a - b).pow(2) + 1e-4).sqrt().sub(0.01).mean()

    z = column(tau) * noise + column(1 - tau) * clean
    taught_velocity = -teacher(z, 1 - tau, y) if taught else noise - clean
    down = draws["ahead"] * tau.clamp(max=0.1)
    with torch.no_grad():
        target = denoised(average, z - column(down) * taught_velocity, tau - down)
    truncated = tau - down < 0.4
    assert 0 < int(truncated.sum()) < ROWS
    target[truncated] = clean[truncated]
    current = denoised(net, z, tau)
    one = noise - velocity(net, noise, torch.ones_like(tau))
    expected = huber(current, target) + 0.1 * softplus(-discriminator(one)).mean()
    if step >= 1000:
        up = draws["behind"] * (1 - tau).clamp(max=0.1)
        with torch.no_grad():
            other = denoised(average, z + column(up) * taught_velocity, tau + up)
        line = (1 - column(tau)) * one.detach() + column(tau) * noise
        expected = expected + 0.1 * huber(current, other)
        expected = expected + 0.1 * (denoised(net, line, tau) - one.detach()).pow(2).mean()

    _, student = build(PARAMS).updates(step)
    found = student(net, batch, context(average, discriminator, step, taught)).loss
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(gradients(found, net), gradients(expected, net), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def gradients(loss, of):
    return torch.autograd.grad(loss, list(of.parameters()), retain_graph=True)


def test_the_discriminators_loss_is_that_of_the_paper(parts):
    net, average, discriminator, batch = parts
    turn, _ = build(PARAMS).updates(0)
    assert isinstance(turn, Turn) and turn.player == "discriminator"
    found = turn.loss(net, batch, context(average, discriminator)).loss
    one = batch.x0 + net(batch.x0, torch.zeros(ROWS).double(), torch.ones(ROWS).double(), batch.y).detach()
    real = batch.x1.clone().requires_grad_()
    score = discriminator(real)
    slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
    expected = softplus(-score).mean() + softplus(discriminator(one)).mean()
    expected = expected + 0.5 * (slope.flatten(1).norm(dim=1) ** 2).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(gradients(found, discriminator), gradients(expected, discriminator), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    found.backward()
    assert all(weight.grad is None for weight in net.parameters())


def test_a_linear_discriminator_has_its_own_norm_as_its_slope(parts):
    """R1 of D(x) = <w, x> is |w|^2, and a D that is zero knows nothing: 2 ln 2."""

    class Plane(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.w = nn.Parameter(torch.full((32,), size, dtype=torch.float64))

        def forward(self, x):
            return x.flatten(1) @ self.w

    net, average, _, batch = parts
    turn, student = build(PARAMS).updates(0)
    logs = turn.loss(net, batch, context(average, Plane(0.5))).logs
    assert float(logs["penalty_r1"]) == pytest.approx(32 / 4)
    logs = turn.loss(net, batch, context(average, Plane(0.0))).logs
    assert float(logs["loss_discriminator"]) == pytest.approx(2 * math.log(2))
    assert float(student(net, batch, context(average, Plane(0.0))).logs["loss_adversarial"]) == pytest.approx(
        math.log(2)
    )


def test_what_is_left_at_the_exact_map_is_the_error_of_one_euler_step(exact_map, taught, gaussian_batch):
    left = {}
    for strength in (0.0, 0.1):
        for step in (0.04, 0.02):
            ctx = taught(2000)
            ctx.players = {"discriminator": lambda x: x.flatten(1).sum(1)}
            method = build(SCFDParams(step=step, data_from=1.0))
            left[strength, step] = method.corrected(exact_map(strength), gaussian_batch, ctx).logs
    for key in ("residual_scfd", "loss_backward"):
        # The distance is quadratic in what is far below its constant.
        order = {"residual_scfd": 4, "loss_backward": 16}[key]
        assert float(left[0.0, 0.04][key] / left[0.0, 0.02][key]) == pytest.approx(order, rel=0.25)
        assert left[0.1, 0.02][key] > 4 * left[0.0, 0.02][key]


def test_the_other_direction_and_reflow_wait_for_the_warm_up():
    method = build(SCFDParams(warmup=2))
    names = [method.updates(step)[1].__name__ for step in range(4)]
    assert names == ["first_steps", "first_steps", "corrected", "corrected"]


class TestDiscriminator:
    def test_it_is_that_of_the_release_in_size(self):
        with torch.device("meta"):
            network = Discriminator([4, 32, 32], 16384, 512, 4)
        block = 2 * (512 * 512 * 9 + 512) + 512 * 512
        last = (513 * 512 * 9 + 512) + (16 * 512 * 512 + 512) + 512 + 1
        assert sum(weight.numel() for weight in network.parameters()) == 4 * 512 + 512 + 3 * block + last
        assert network(torch.zeros(8, 4, 32, 32, device="meta")).shape == (8,)

    def test_a_layer_that_halves_filters_before_it_strides(self):
        torch.manual_seed(0)
        block = Discriminator([1, 8, 8], 8, 2, 1).double().blocks[0]
        x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
        line = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
        layer = block.shortcut
        found = layer(x)
        expected = torch.zeros_like(found)
        for row in range(4):
            for col in range(4):
                for i in range(4):
                    for j in range(4):
                        a, b = 2 * row + i - 1, 2 * col + j - 1
                        if 0 <= a < 8 and 0 <= b < 8:
                            expected[0, :, row, col] += (
                                line[i] * line[j] * x[0, 0, a, b] * layer.weight[:, 0, 0, 0]
                            )
        torch.testing.assert_close(found, expected.detach())

    def test_a_layer_keeps_the_mean_square(self):
        """Of white noise: 2 (1 + 0.2^2) / 2 behind the leaky ReLU."""
        torch.manual_seed(0)
        layer = Discriminator([64, 8, 8], 512, 64, 4).inward
        assert float(layer(torch.randn(64, 64, 8, 8)).detach().square().mean()) == pytest.approx(
            1.04, rel=0.1
        )

    def test_the_last_block_sees_how_much_a_group_differs(self):
        network = Discriminator([2, 4, 4], 16, 4, 2).double()
        h = torch.stack([torch.full((3, 4, 4), v, dtype=torch.float64) for v in (1.0, 5.0, 7.0, 7.0)])
        spread = network._spread(h)
        assert spread.shape == (4, 1, 4, 4)
        assert spread[:, 0, 0, 0].tolist() == pytest.approx([2, 2, 0, 0], abs=2e-4)

    def test_rows_that_are_no_groups_are_refused(self):
        with pytest.raises(ValueError, match=r"loss\.group: 6 rows are not groups of 4"):
            Discriminator([2, 4, 4], 16, 4, 4)(torch.zeros(6, 2, 4, 4))

    @pytest.mark.parametrize("shape", [[3, 28, 28], [1, 7, 7], [4, 16, 8], [2, 1, 1]])
    def test_any_shape_will_do(self, shape):
        network = Discriminator(shape, 32, 4, 2)
        assert network(torch.zeros(4, *shape)).shape == (4,)


@pytest.mark.parametrize(("steps", "ratio"), [(1, 1.0), (1000, 2.0)])
def test_eulers_method_overshoots_where_paths_are_not_straight(steps, ratio):
    """By an exact f, of normal numbers: f(x, t) = x b / sqrt((1 - t)^2 + (t b)^2). One step is right."""
    b = 0.73

    def field(x, t, s):
        return (x * b / math.hypot(1 - t, t * b) - x) / (1 - t)

    found = integrate(Sampler(kind="euler"), field, torch.ones(1, dtype=torch.float64), steps, lambda _: None)
    assert found.item() == pytest.approx(ratio * b, rel=2e-3)
