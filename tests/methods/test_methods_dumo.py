"""DuMo: closed forms on linear-Gaussian data and on a mixture, and what the parameters mean."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fewstep import methods
from fewstep.config.objectives import Enhancement, TimeDistribution
from fewstep.core.enhanced import EnhancedSample
from fewstep.core.jvp import value_and_tangent
from fewstep.core.method import Batch, Context
from fewstep.core.path import append_dims, interpolate
from fewstep.core.rng import Streams
from fewstep.methods.dumo.params import DuMoParams

TAUGHT = Enhancement(zeta=1.0, start=0.0)
"""v* is the teacher's velocity."""
LIMIT = {"difference": "tangent", "delta": None}


def build(**given):
    return methods.build(DuMoParams(**{"clip": None, **given}))


def run(net, batch, ctx, **given):
    (loss,) = build(**given).updates(0)
    return loss(net, batch, ctx)


def gradient(net, batch, ctx, **given):
    return torch.autograd.grad(run(net, batch, ctx, **given).loss, list(net.parameters()))


class TestLinearGaussian:
    @pytest.mark.parametrize("direction", ["head", "conditional"])
    def test_the_limit_vanishes_at_the_exact_map_only(
        self, direction, exact_heads, exact_context, gaussian_batch
    ):
        given = {"enhance": TAUGHT, "direction": direction, "cosine_v": True, **LIMIT}
        exact = run(exact_heads(), gaussian_batch, exact_context(), **given)
        assert abs(exact.loss.item()) < 1e-15 and float(exact.logs["residual_u"]) < 1e-14
        wrong = run(exact_heads(0.1), gaussian_batch, exact_context(), **given)
        assert float(wrong.logs["residual_u"]) > 1e-2 and float(wrong.logs["loss_v"]) > 1e-3

    def test_the_defect_of_one_application_is_of_second_order(
        self, exact_heads, exact_context, gaussian_batch
    ):
        """(1 - l) (1 - t) xi is what the predicted data change by from t to t'."""
        ratios = (0.9, 0.99, 0.999)
        defects = [
            (1 - ratio)
            * float(
                run(
                    exact_heads(), gaussian_batch, exact_context(), enhance=TAUGHT, ratio=ratio, delta=None
                ).logs["residual_u"]
            )
            for ratio in ratios
        ]
        assert defects[0] / defects[1] == pytest.approx(100, rel=0.15)
        assert defects[1] / defects[2] == pytest.approx(100, rel=0.03)

    def test_a_central_difference_is_of_second_order(self, exact_heads, exact_context, gaussian_batch):
        """Against the derivative, at a wrong map too, on times away from the ends."""
        times = TimeDistribution(law="segments", segments=2)
        middle = {"times": times, "enhance": TAUGHT}
        batch = rows_of(gaussian_batch, exact_context().rng.integers("t", 2) == 1)
        for perturbation in (0.0, 0.3):
            net, found = exact_heads(perturbation), {}
            t = torch.full((len(batch.x1),), 0.5, dtype=torch.float64)
            for name, given in {"far": {"delta": 0.02}, "near": {"delta": 0.01}}.items():
                found[name] = residual(
                    net, batch, exact_context(), t, difference="central", **given, **middle
                )
            limit = residual(net, batch, exact_context(), t, **LIMIT, **middle)
            far, near = ((found[name] - limit).square().mean().sqrt() for name in ("far", "near"))
            assert float(far / near) == pytest.approx(4, rel=0.02)
            assert float(near) < 2e-3

    def test_fixed_points_along_the_head(self, exact_heads, exact_context, gaussian_batch):
        """The map that Euler steps of ratio l make has no residual, and a bias O(1 - l)."""
        shift = []
        zero = torch.zeros(len(gaussian_batch.x0), dtype=torch.float64)
        for ratio in (0.8, 0.98):
            net = FixedPoint(exact_heads(), ratio)
            terms = run(net, gaussian_batch, exact_context(), ratio=ratio, delta=None)
            assert float(terms.logs["residual_u"]) < 1e-4
            shift.append(net(gaussian_batch.x0, zero, zero, None)[1])
            shift[-1] = shift[-1] - exact_heads()(gaussian_batch.x0, zero, zero, None)[1]
        far, near = (float(value.detach().square().mean().sqrt()) for value in shift)
        assert far / near == pytest.approx(10, rel=0.15) and 0.001 < near < 0.05

    def test_the_same_fixed_point_along_samples(self, exact_heads, exact_context, gaussian_batch):
        """On average: there is noise in the target, and no pull in any direction."""
        net, pulls = FixedPoint(exact_heads(), 0.8), []
        for step in range(40):
            given = {"ratio": 0.8, "delta": None, "direction": "conditional"}
            pulls.append(float(gradient(net, drawn(step, gaussian_batch), exact_context(step), **given)[1]))
        mean, std = torch.tensor(pulls).mean(), torch.tensor(pulls).std()
        assert float(std) > 1e-4 and abs(float(mean)) < 4 * float(std) / math.sqrt(len(pulls))


def rows_of(batch, rows):
    return Batch(batch.x1[rows], batch.x0[rows], batch.y[rows])


def drawn(step, batch):
    draws = torch.Generator().manual_seed(step)
    scale = torch.linspace(0.3, 1.7, 6, dtype=torch.float64).reshape(3, 2, 1)
    x1, x0 = torch.randn(2, *batch.x1.shape, generator=draws, dtype=torch.float64)
    return Batch(scale * x1, x0, batch.y)


def residual(net, batch, ctx, t, **given):
    """xi at given times, (B, C, H, W)."""
    method = build(**given)
    at = EnhancedSample(batch, ctx, t, method.params.enhance, net)
    if method.params.difference == "tangent":
        return method._tangent(net, at, ctx)[2]
    v, u = net(at.x, t, t, at.y)
    at.own = v.detach()
    return method._difference(net, at, u.detach())


class FixedPoint(nn.Module):
    """v exact; u the map of Euler steps with v from t to 1 - l (1 - t) for ever, and a slope to move it."""

    def __init__(self, exact, ratio):
        super().__init__()
        self.exact, self.ratio = exact, ratio
        self.slope = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, s, y):
        v = self.exact(x, t, t, y)[0]
        factor, now, one = torch.ones_like(x), t, torch.ones_like(x)
        for _ in range(math.ceil(math.log(1e-6) / math.log(self.ratio))):
            after = 1 - self.ratio * (1 - now)
            factor = factor * (1 + append_dims(after - now, x) * self.exact(one, now, now, y)[0])
            now = after
        return v, (factor - 1) * x / append_dims((1 - t).clamp(min=1e-9), x) + self.slope * x


class Mixture(nn.Module):
    """Exact velocity and flow map of two modes in one dimension; shapes (B, 1, 1, 1)."""

    means = torch.tensor([-1.5, 1.0], dtype=torch.float64)
    stds = torch.tensor([0.3, 0.5], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)

    def at(self, t):
        """Means and deviations of x_t's modes, (B, 2)."""
        return t[:, None] * self.means, ((t[:, None] * self.stds) ** 2 + (1 - t[:, None]) ** 2).sqrt()

    def posterior(self, x, t):
        """Weights, means and deviations of x1's modes given x_t, (B, 2)."""
        m, q = self.at(t)
        weights = torch.softmax(self.weights.log() - q.log() - ((x.flatten()[:, None] - m) / q) ** 2 / 2, 1)
        gain = t[:, None] * self.stds**2 / q**2
        means = self.means + gain * (x.flatten()[:, None] - m)
        return weights, means, self.stds * (1 - t[:, None]) / q

    def cdf(self, x, t):
        m, q = self.at(t)
        return (self.weights * torch.special.ndtr((x[:, None] - m) / q)).sum(1)

    def forward(self, x, t, s, y):
        weights, means, _ = self.posterior(x, t)
        left = append_dims((1 - t).clamp(min=1e-12), x)
        v = ((weights * means).sum(1).reshape(x.shape) - x) / left
        level = self.cdf(x.flatten(), t)
        low, high = torch.full_like(level, -9.0), torch.full_like(level, 9.0)
        for _ in range(42):  # bisection: quantile by quantile
            middle = (low + high) / 2
            below = self.cdf(middle, torch.ones_like(t)) < level
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return v, ((low + high).reshape(x.shape) / 2 - x) / left


class TestMixture:
    """What is left of xi on average at the exact map, at t = 0.3: rms over x_t of E[xi | x_t]."""

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"direction": "conditional", "delta": 0.01}, 2.28),
            ({"direction": "head", "delta": 0.01}, 2.15e-2),
            ({"direction": "conditional", "difference": "central", "delta": 0.005}, 0.106),
            ({"direction": "head", "difference": "central", "delta": 0.005}, 6.8e-5),
        ],
    )
    def test_the_head_as_direction_leaves_far_less(self, given, expected, exact_context):
        net, time, nodes = Mixture(), 0.3, torch.linspace(-4, 4, 31, dtype=torch.float64)
        even = torch.linspace(-2.5, 2.5, 101, dtype=torch.float64)
        between = even[int((net.cdf(even, torch.full_like(even, time)) < 0.4).sum())]
        # Where the modes part, the map is 40 times as steep as elsewhere.
        grid = torch.cat([even, between + 0.06 * even]).sort().values
        t = torch.full_like(grid, time)
        weights, means, stds = net.posterior(grid, t)
        shape = (len(grid), 2, len(nodes))
        x1 = (means[..., None] + stds[..., None] * nodes).reshape(-1, 1, 1, 1)
        x = grid[:, None, None].expand(shape).reshape(-1, 1, 1, 1)
        batch = Batch(x1, (x - time * x1) / (1 - time), torch.zeros(len(x1), dtype=torch.int64))
        times = torch.full((len(x1),), time, dtype=torch.float64)
        xi = residual(net, batch, exact_context(taught=False), times, **given)
        share = weights[..., None] * torch.softmax(-(nodes**2) / 2, 0)
        mean = (share * xi.reshape(shape)).sum((1, 2))
        m, q = net.at(t)
        density = (net.weights / q * torch.exp(-(((grid[:, None] - m) / q) ** 2) / 2)).sum(1)
        power = torch.trapezoid(density * mean**2, grid) / torch.trapezoid(density, grid)
        assert float(power.sqrt()) == pytest.approx(expected, rel=0.05)


class TestByHand:
    """The gradient with respect to p of a map that is wrong by p sin(3 x + 2 t + 5 s) in both outputs."""

    @pytest.fixture
    def problem(self, exact_heads, exact_context, gaussian_batch):
        net, ctx = exact_heads(0.4), exact_context(taught=False)
        t = ctx.rng.uniform("t").double()
        x = interpolate(gaussian_batch.x0, gaussian_batch.x1, t)
        return net, gaussian_batch, ctx, t, x

    def pull(self, net, loss):
        return torch.autograd.grad(loss, net.parameters(), retain_graph=True)[0]

    @pytest.mark.parametrize("direction", ["head", "conditional"])
    def test_theorem_1(self, direction, problem):
        """The unit gain has the surrogate's gradient, the gain 1 - l that of the regression."""
        net, batch, ctx, t, x = problem
        ratio = 0.8
        given = {"direction": direction, "ratio": ratio, "delta": None}
        v, u = net(x, t, t, batch.y)
        line = batch.x1 - batch.x0
        w = v.detach() if direction == "head" else line
        after = 1 - ratio * (1 - t)
        moved = net(x + append_dims(after - t, x) * w, after, after, batch.y)[1].detach()
        loss_v = (v - line).square().mean()
        surrogate = (u - w).square().mean() + ratio / (1 - ratio) * (u - moved).square().mean()
        regression = (u - ((1 - ratio) * w + ratio * moved)).square().mean()
        for gain, loss in {"unit": surrogate, "ratio": regression}.items():
            expected = self.pull(net, loss_v + 0.7 * loss)
            found = gradient(net, batch, ctx, gain=gain, weight_u=0.7, **given)[0]
            torch.testing.assert_close(found, expected)

    def test_clip_and_the_end_of_the_interval(self, problem):
        """Within delta of the data the flow map learns v* itself."""
        net, batch, ctx, t, x = problem
        v, u = net(x, t, t, batch.y)
        line, b = batch.x1 - batch.x0, t + 0.4
        moved = net(x + 0.4 * v, b, b, batch.y)[1]
        change = (x + 0.4 * v + append_dims(1 - b, x) * moved - x - append_dims(1 - t, x) * u) / 0.4
        xi = torch.where(append_dims(b >= 1, x), line - u, change).clamp(-0.5, 0.5).detach()
        expected = self.pull(net, (v - line).square().mean() + (u - u.detach() - xi).square().mean())
        torch.testing.assert_close(gradient(net, batch, ctx, delta=0.4, clip=0.5)[0], expected)

    def test_the_gain_of_ucgm(self, problem):
        net, batch, ctx, t, x = problem
        xi = residual(net, batch, ctx, t, difference="central", delta=0.005)
        v, u = net(x, t, t, batch.y)
        gain, weight = 4 * (1 - t) / torch.sin(1.57 * (1 - t)), torch.cos(1.57 * (1 - t))
        target = (u + append_dims(gain, x) * xi).detach()
        loss_u = (append_dims(weight, x) * (u - target).square()).mean()
        expected = self.pull(net, (v - batch.x1 + batch.x0).square().mean() + loss_u)
        found = gradient(net, batch, ctx, difference="central", delta=0.005, gain="sine")[0]
        torch.testing.assert_close(found, expected)
        gain, weight = build(gain="sine")._gain(torch.ones(1))
        assert float(gain) == pytest.approx(4 / 1.57) and float(weight) == 1

    def test_the_pseudo_huber_loss_shortens_the_pull(self, problem):
        net, batch, ctx, t, x = problem
        v, u = net(x, t, t, batch.y)
        xi = residual(net, batch, ctx, t, delta=0.01)
        losses = [
            ((a - b).square().flatten(1).mean(1) + c**2).sqrt() - c
            for a, b, c in ((v, batch.x1 - batch.x0, 0.3), (u, u.detach() + xi, 5.0))
        ]
        expected = self.pull(net, sum(losses).mean())
        torch.testing.assert_close(gradient(net, batch, ctx, huber_v=0.3, huber_u=5.0)[0], expected)


class Counting(nn.Module):
    """Passes on, and notes labels and whether a graph is recorded."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, []

    def forward(self, x, t, s, y):
        self.calls.append((torch.is_grad_enabled(), bool((y == 1).all())))
        return self.net(x, t, s, y)


def test_forwards_per_step(exact_heads, exact_context, gaussian_batch):
    """One with a graph, one ahead; one without label for one's own guidance; one more for two sides."""
    own = Enhancement(reference="own", difference="online", zeta=0.44)
    for given, calls in {
        (): [(True, False), (False, False)],
        (("enhance", own),): [(True, False), (False, True), (False, False)],
        (("difference", "central"),): [(True, False), (False, False), (False, False)],
    }.items():
        net = Counting(exact_heads(0.1))
        run(net, gaussian_batch, exact_context(taught=False), **dict(given))
        assert sorted(net.calls) == sorted(calls)


def test_the_target_network_looks_ahead(exact_heads, exact_context, gaussian_batch):
    net, average, ctx = exact_heads(0.2), Counting(exact_heads()), exact_context(taught=False)
    ctx.target = average
    assert build(target_decay=0.9).target_decay == 0.9 and build().target_decay is None
    run(net, gaussian_batch, ctx, target_decay=0.9)
    assert average.calls == [(False, False)]


def test_each_head_learns_from_its_own_loss(tiny, tiny_batch):
    """The flow map's target moves along the velocity head, but sends no gradient there."""
    net, found = tiny("dumo"), []
    ctx = Context(0, 1, Streams(0, 0, len(tiny_batch.x1), slice(None)), 3, value_and_tangent)
    for weight in (1.0, 3.0):
        net.zero_grad()
        run(net, tiny_batch, ctx, weight_u=weight).loss.backward()
        found.append((net.outward.weight.grad.clone(), net.outward_u.weight.grad.clone()))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], 3 * found[0][1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": 0.9}, "one of delta, ratio"),
        ({"delta": None}, "one of delta, ratio"),
        ({"difference": "central", "ratio": 0.9, "delta": None}, "central needs delta"),
        ({"difference": "tangent"}, "tangent has no interval"),
        ({"difference": "central", "gain": "ratio"}, "gain: ratio belongs to"),
    ],
)
def test_parameters_that_do_not_go_together(given, message):
    with pytest.raises(ValidationError, match=message):
        DuMoParams(**given)
