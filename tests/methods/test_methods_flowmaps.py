"""Flow maps learnt by splitting an interval, by short steps, and from either end of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep import methods
from fewstep.config.objectives import TimeDistribution
from fewstep.core.jvp import value_and_tangent
from fewstep.core.path import append_dims, interpolate
from fewstep.methods.ayf.params import AYFParams
from fewstep.methods.imeanflow.params import IMeanFlowParams
from fewstep.methods.kd.params import KDParams
from fewstep.methods.meanflow.params import MeanFlowParams
from fewstep.methods.soflow.params import SoFlowParams
from fewstep.methods.splitmeanflow.params import SplitMeanFlowParams

UNIFORM = TimeDistribution()
SPLIT = SplitMeanFlowParams(flow_matching_fraction=0.3)
SPLIT_ONLY = SplitMeanFlowParams(flow_matching_fraction=0.0)
IMPROVED = IMeanFlowParams(norm_power=0.0)
EXACT = {
    "splitmeanflow": SPLIT,
    "splitmeanflow without flow matching": SPLIT_ONLY,
    "imeanflow": IMPROVED,
    "ayf emd": AYFParams(warmup=0, rho=1.0),
    "ayf lmd": AYFParams(objective="lmd"),
}


def evaluate(params, net, batch, ctx):
    (loss,) = methods.build(params).updates(int(ctx.step))
    return loss(net, batch, ctx)


def phi(x, t, s):
    """dF/dp of the perturbed exact map."""
    return torch.sin(3 * x + 2 * append_dims(t, x) + 5 * append_dims(s, x))


def by_hand(g, slope):
    """Gradient of the mean of (F - (sg(F) - g))^2."""
    return (2 * g * slope).mean()


def gradient(params, net, batch, ctx):
    return torch.autograd.grad(evaluate(params, net, batch, ctx).loss, net.parameters())[0]


@pytest.mark.parametrize("name", EXACT)
def test_residual_vanishes_at_the_exact_map_only(name, exact_map, exact_context, gaussian_batch):
    exact = evaluate(EXACT[name], exact_map(), gaussian_batch, exact_context())
    perturbed = evaluate(EXACT[name], exact_map(0.1), gaussian_batch, exact_context())
    residual = next(key for key in exact.logs if key.startswith("residual"))
    assert exact.loss.item() < 1e-24 and float(exact.logs[residual]) < 1e-13
    assert perturbed.loss.item() > 1e-4 and float(perturbed.logs[residual]) > 1e-2


def test_without_a_teacher_lmd_follows_its_own_velocity(exact_map, exact_context, gaussian_batch):
    terms = evaluate(EXACT["ayf lmd"], exact_map(), gaussian_batch, exact_context(taught=False))
    assert float(terms.logs["residual_ayf"]) < 1e-13


def test_soflow_vanishes_to_the_order_of_one_euler_step(exact_map, exact_context, gaussian_batch):
    def residual(ratio, net):
        params = SoFlowParams(flow_matching_fraction=0.0, ratio=[ratio, ratio])
        return float(evaluate(params, net, gaussian_batch, exact_context()).logs["residual_sof"])

    coarse, middle, fine = (residual(ratio, exact_map()) for ratio in (0.08, 0.04, 0.02))
    assert coarse / middle == pytest.approx(2, rel=0.03)
    assert middle / fine == pytest.approx(2, rel=0.03)
    assert fine < 0.01 < 0.05 < residual(0.02, exact_map(0.1))


def test_soflow_finds_the_limit_of_its_ratio(exact_map, exact_context, gaussian_batch):
    """For a short step its gradient is MeanFlow's, halved and with weights: g = F - v - (s - t) dF."""
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    params = SoFlowParams(
        flow_matching_fraction=0.0,
        ratio=[1e-4, 1e-4],
        norm_power=0.0,
        consistency_times=TimeDistribution(law="logit-normal", mean=-2.0, std=0.3),
        end_times=TimeDistribution(law="logit-normal", mean=2.0, std=0.3),
    )
    t = torch.sigmoid(-2.0 + 0.3 * ctx.rng.normal("t")).double()
    s = torch.sigmoid(2.0 + 0.3 * ctx.rng.normal("s")).double()
    x = interpolate(batch.x0, batch.x1, t)
    v = ctx.teacher(x, t, batch.y)
    F, dF = value_and_tangent(
        net, (x, t, s), (v, torch.ones_like(t), torch.zeros_like(t)), batch.y, "functorch"
    )
    g = F.detach() - v - append_dims(s - t, x) * dF
    expected = by_hand(g, phi(x, t, s)) / 2
    assert float(gradient(params, net, batch, ctx)) == pytest.approx(float(expected), rel=2e-3)


def test_soflow_shortens_its_steps(exact_context):
    method = methods.build(SoFlowParams())
    ratios = [method.ratio(exact_context(step)) for step in (0, 50, 100)]
    assert ratios[0] == 0.1 and ratios[2] == pytest.approx(0.002)
    assert ratios[1] ** 2 == pytest.approx(ratios[0] * ratios[2])


def test_soflow_with_the_velocity_alone_is_flow_matching(exact_map, exact_context, gaussian_batch):
    net, ctx = exact_map(0.4), exact_context()
    params = SoFlowParams(flow_matching_fraction=1.0, times=UNIFORM, norm_power=0.0)
    t = ctx.rng.uniform("velocity").double()
    x = interpolate(gaussian_batch.x0, gaussian_batch.x1, t)
    g = net(x, t, t, gaussian_batch.y).detach() - ctx.teacher(x, t, gaussian_batch.y)
    torch.testing.assert_close(gradient(params, net, gaussian_batch, ctx), by_hand(g, phi(x, t, t)))


def test_split_puts_two_jumps_together(exact_map, exact_context, gaussian_batch):
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    draws = torch.stack([ctx.rng.uniform("t"), ctx.rng.uniform("s")]).double()
    t, s = draws.min(0).values, draws.max(0).values
    m = t + ctx.rng.uniform("lambda").double() * (s - t)
    x = interpolate(batch.x0, batch.x1, t)

    def jump(x, t, s):
        return x + append_dims(s - t, x) * net(x, t, s, batch.y)

    with torch.no_grad():
        g = net(x, t, s, batch.y) - (jump(jump(x, t, m), m, s) - x) / append_dims(s - t, x)
    torch.testing.assert_close(gradient(SPLIT_ONLY, net, batch, ctx), by_hand(g, phi(x, t, s)))


def test_split_asks_the_teacher_about_rows_without_a_gap_only(tiny, tiny_batch, exact_context):
    asked = []

    def teacher(x, t, y):
        asked.append(len(t))
        return x

    ctx = exact_context()
    ctx.teacher = teacher
    ctx.rng = type(ctx.rng)(3, 0, 8, slice(None))
    still = int((ctx.rng.uniform("equal") < 0.3).sum())
    evaluate(SPLIT, tiny("splitmeanflow"), tiny_batch, ctx)
    assert asked == [still] and 0 < still < 8
    evaluate(SPLIT_ONLY, tiny("splitmeanflow"), tiny_batch, ctx)
    assert len(asked) == 1


def test_improved_meanflow_differentiates_the_value_and_the_velocity(
    exact_map, exact_context, gaussian_batch
):
    """Along the network's own velocity; the derivative itself is held fixed."""
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    params = IMPROVED.model_copy(update={"times": UNIFORM, "flow_matching_fraction": 0.0})
    draws = torch.stack([ctx.rng.uniform("t"), ctx.rng.uniform("s")]).double()
    t, s = draws.min(0).values, draws.max(0).values
    x = interpolate(batch.x0, batch.x1, t)
    own = net(x, t, t, batch.y).detach()
    along = (own, torch.ones_like(t), torch.zeros_like(t))
    F, dF = value_and_tangent(net, (x, t, s), along, batch.y, "functorch")
    v = ctx.teacher(x, t, batch.y)
    expected = by_hand(F.detach() - append_dims(s - t, x) * dF - v, phi(x, t, s)) + by_hand(
        own - v, phi(x, t, t)
    )
    torch.testing.assert_close(gradient(params, net, batch, ctx), expected)


@pytest.mark.parametrize("objective", ["emd", "lmd"])
def test_align_your_flow_follows_its_residual(objective, exact_map, exact_context, gaussian_batch):
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    params = AYFParams(objective=objective, gaps=UNIFORM, warmup=0, rho=1.0)
    gap = ctx.rng.uniform("gap")
    t = ((1 - gap) * ctx.rng.uniform("t")).double()
    s = t + gap.double()
    x = interpolate(batch.x0, batch.x1, t)
    one, none = torch.ones_like(t), torch.zeros_like(t)
    v = ctx.teacher(x, t, batch.y)
    along = (v, one, none) if objective == "emd" else (torch.zeros_like(x), none, one)
    F, dF = value_and_tangent(net, (x, t, s), along, batch.y, "functorch")
    F, scaled = F.detach(), append_dims(s - t, x) * dF
    g = (
        F - v - scaled
        if objective == "emd"
        else F + scaled - ctx.teacher(x + append_dims(s - t, x) * F, s, batch.y)
    )
    g = g / (append_dims(g.square().flatten(1).mean(1).sqrt(), g) + 0.1)
    torch.testing.assert_close(gradient(params, net, batch, ctx), by_hand(g, phi(x, t, s)))


def test_both_ends_of_align_your_flow_are_limits_of_difference_quotients(
    exact_map, exact_context, gaussian_batch
):
    """Start moved along the ODE, arrival held; and start held, arrival moved: both by central differences."""
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    h = 1e-5

    def f(x, t, s):
        return x + append_dims(s - t, x) * net(x, t, s, batch.y)

    def terms(objective):
        params = AYFParams(objective=objective, gaps=UNIFORM, warmup=0, rho=1.0)
        return float(evaluate(params, net, batch, ctx).logs["residual_ayf"])

    gap = ctx.rng.uniform("gap")
    t = ((1 - gap) * ctx.rng.uniform("t")).double()
    s = t + gap.double()
    x = interpolate(batch.x0, batch.x1, t)
    with torch.no_grad():
        v = ctx.teacher(x, t, batch.y)
        left = -(f(x + h * v, t + h, s) - f(x - h * v, t - h, s)) / (2 * h)
        right = (f(x, t, s + h) - f(x, t, s - h)) / (2 * h) - ctx.teacher(f(x, t, s), s, batch.y)
    for objective, g in {"emd": left, "lmd": right}.items():
        assert terms(objective) == pytest.approx(float(g.square().flatten(1).mean(1).sqrt().mean()), rel=1e-6)


def test_align_your_flow_warms_up_the_eulerian_tangent(exact_map, exact_context, gaussian_batch):
    """At step 0 the residual is flow matching's; the ramp ends at rho. The other end has no ramp."""

    def residual(step, **given):
        params = AYFParams(warmup=10, **given)
        terms = evaluate(params, exact_map(), gaussian_batch, exact_context(0) if not step else later(step))
        return float(terms.logs["residual_ayf"])

    def later(step):
        ctx = exact_context(0)
        ctx.step = torch.tensor(step, dtype=torch.float64)
        return ctx

    values = [residual(step, rho=1.0) for step in (0, 5, 10, 20)]
    assert values[0] > values[1] > values[2] and values[2] == values[3] < 1e-13
    assert residual(10, rho=0.9) == pytest.approx(0.1 * values[0], rel=1e-6)
    assert residual(0, objective="lmd") < 1e-13


@pytest.mark.parametrize("taught", [True, False])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_kd_vanishes_to_the_order_of_its_solver(
    solver, order, taught, exact_map, exact_context, gaussian_batch
):
    def residual(steps, net):
        params = KDParams(solver=solver, solver_steps=steps)
        return float(evaluate(params, net, gaussian_batch, exact_context(taught=taught)).logs["residual_kd"])

    coarse, fine = residual(32, exact_map()), residual(64, exact_map())
    assert coarse / fine == pytest.approx(2**order, rel=0.1)
    assert fine < 0.03 < residual(64, exact_map(0.3))


def test_kd_solves_one_ode(exact_map, exact_context, gaussian_batch):
    """Two steps of Heun's method by hand."""
    net, batch, ctx = exact_map(0.4), gaussian_batch, exact_context()
    x, t = batch.x0, torch.zeros(len(batch.x0), dtype=torch.float64)
    for _ in range(2):
        first = ctx.teacher(x, t, batch.y)
        second = ctx.teacher(x + first / 2, t + 0.5, batch.y)
        x, t = x + (first + second) / 4, t + 0.5
    start = torch.zeros_like(t)
    g = net(batch.x0, start, t, batch.y).detach() - (x - batch.x0)
    expected = by_hand(g, phi(batch.x0, start, t))
    torch.testing.assert_close(gradient(KDParams(solver_steps=2), net, batch, ctx), expected)


class Labelled(nn.Module):
    """The exact map, and 1 more where the label is null."""

    def __init__(self, exact: nn.Module):
        super().__init__()
        self.exact = exact

    def forward(self, x, t, s, y):
        return self.exact(x, t, s, y) + append_dims((y == 1).to(x), x)


def test_meanflow_guides_itself_inside_of_its_times(exact_map, exact_context, gaussian_batch):
    """v moves away from the velocity without a label, but for rows without one and at other times."""
    guide = {"omega": 0.2, "kappa": 0.92, "guided": [0.25, 0.75]}
    params = MeanFlowParams(times=UNIFORM, flow_matching_fraction=1.0, norm_power=0.0, **guide)
    net, batch, ctx = Labelled(exact_map(0.4)), gaussian_batch, exact_context()
    draws = torch.stack([ctx.rng.uniform("t"), ctx.rng.uniform("s")]).double()
    t = draws.min(0).values
    dropped = torch.arange(len(t)) % 4 == 0
    batch = type(batch)(batch.x1, batch.x0, dropped.long())
    x = interpolate(batch.x0, batch.x1, t)
    v = ctx.teacher(x, t, batch.y)
    own = net.exact(x, t, t, batch.y).detach()
    inside = (t >= 0.25) & (t <= 0.75) & ~dropped
    mixed = 0.2 * v + 0.92 * own - 0.12 * (own + 1)
    expected = torch.where(append_dims(inside, x), mixed, v)
    g = net(x, t, t, batch.y).detach() - expected
    torch.testing.assert_close(gradient(params, net, batch, ctx), by_hand(g, phi(x, t, t)))


def test_meanflow_has_the_plain_form_of_guidance_too(exact_map, exact_context, gaussian_batch):
    """kappa = 0: the velocity without a label, and 3 times the way from there to v."""
    params = MeanFlowParams(times=UNIFORM, flow_matching_fraction=1.0, norm_power=0.0, omega=3.0)
    net, batch, ctx = Labelled(exact_map(0.4)), gaussian_batch, exact_context()
    draws = torch.stack([ctx.rng.uniform("t"), ctx.rng.uniform("s")]).double()
    t = draws.min(0).values
    x = interpolate(batch.x0, batch.x1, t)
    null = net.exact(x, t, t, batch.y).detach() + 1
    expected = null + 3 * (ctx.teacher(x, t, batch.y) - null)
    g = net(x, t, t, batch.y).detach() - expected
    torch.testing.assert_close(gradient(params, net, batch, ctx), by_hand(g, phi(x, t, t)))


@pytest.mark.parametrize(
    "params",
    [
        MeanFlowParams(flow_matching_fraction=0.75),
        IMPROVED.model_copy(update={"flow_matching_fraction": 0.5}),
    ],
    ids=["meanflow", "imeanflow"],
)
def test_rows_without_label_have_no_interval(params, exact_map, exact_context, gaussian_batch):
    """Both are the first rows of a batch in the releases; the share of rows with s = t stays what it is."""
    asked = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = exact_map(0.1)

        def forward(self, x, t, s, y):
            asked.append((t, s, y))
            return self.net(x, t, s, y)

    for taught in (True, False):
        asked.clear()
        ctx = exact_context(taught=taught)
        ctx.label_dropout = 0.3
        evaluate(params, Spy(), gaussian_batch, ctx)
        t, s, y = asked[-1]
        share = params.flow_matching_fraction
        assert float((s == t).double().mean()) == pytest.approx(share, abs=0.08)
        assert (s == t)[y == ctx.null].all() and bool((y == ctx.null).any()) != taught


def test_soflow_keeps_its_times_apart(exact_map, exact_context, gaussian_batch):
    """The release's least gap, where the end drawn is before the start, or the start beside the data."""
    asked = []

    class Spy(nn.Module):
        def forward(self, x, t, s, y):
            asked.append((t, s))
            return exact_map(0.1)(x, t, s, y)

    late = TimeDistribution(law="logit-normal", mean=20.0, std=1.0)
    early = TimeDistribution(law="logit-normal", mean=-2.0, std=1.0)
    for start, end in ((UNIFORM, early), (late, late)):
        asked.clear()
        params = SoFlowParams(flow_matching_fraction=0.0, consistency_times=start, end_times=end)
        evaluate(params, Spy(), gaussian_batch, exact_context())
        (t, s), (middle, same) = asked
        assert float((s - t).min()) == pytest.approx(1e-4, rel=1e-3)
        assert float((middle - t).min()) == pytest.approx(1e-4, rel=1e-3)
        assert torch.equal(s, same) and float((middle - s).max()) < 1e-7


class TwoHeads(nn.Module):
    """Velocity and flow map of two networks, called as one."""

    def __init__(self, velocity: nn.Module, flow_map: nn.Module):
        super().__init__()
        self.velocity, self.flow_map = velocity, flow_map

    def forward(self, x, t, s, y):
        return self.velocity(x, t, s, y), self.flow_map(x, t, s, y)


def test_improved_meanflow_trains_both_heads(tiny, tiny_batch, exact_context):
    """Rows with s = t and the second loss train the velocity, other rows the flow map."""
    net = TwoHeads(tiny("decm"), tiny("decm"))
    ctx = exact_context(taught=False)
    ctx.rng = type(ctx.rng)(3, 0, 8, slice(None))
    for equal, reached in ((0.0, {"velocity", "flow_map"}), (1.0, {"velocity"})):
        params = IMPROVED.model_copy(update={"flow_matching_fraction": equal})
        loss = evaluate(params, net, tiny_batch, ctx).loss
        gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
        names = [name.split(".")[0] for name, _ in net.named_parameters()]
        assert {
            name for name, g in zip(names, gradients, strict=True) if g is not None and g.any()
        } == reached
