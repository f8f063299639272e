"""Objectives that compare jumps of finite length, on the exact flow map; IMM and Shortcut in particular.

What a discrete objective leaves at the exact map is its discretisation: it falls with the step at a known
order, while that of a wrong map stays.
"""

from __future__ import annotations

import math

import pytest
import torch
from jump_factories import Recorder, ctm, ict, imm, slope, tcm, terms
from torch import nn

from fewstep import methods
from fewstep.core.path import append_dims, flow_map, interpolate
from fewstep.core.path_sample import PathSample
from fewstep.methods.imm.params import IMMParams
from fewstep.methods.shortcut.params import ShortcutParams

STD = torch.linspace(0.3, 1.7, 6, dtype=torch.float64).reshape(3, 2, 1)

# Objective with its step halved, the logged residual, and by how much that falls.
ORDERS = {
    "imm": (imm(0.02), imm(0.01), "mmd_imm", 3),  # 4 if it were not for pairs whose s is as near as r
    "ict": (ict(48, huber=1.0), ict(96, huber=1.0), "residual_ict", 2),
    "ctm euler": (ctm(13), ctm(25), "residual_ctm", 2),
    "ctm heun": (ctm(13, solver="heun"), ctm(25, solver="heun"), "residual_ctm", 4),
    "tcm": (tcm(1 / 64), tcm(1 / 128), "residual_tcm", 2),
}


@pytest.mark.parametrize("name", ORDERS)
def test_what_is_left_at_the_exact_map_falls_with_the_step(name, exact_map, taught, gaussian_batch):
    coarse, fine, key, order = ORDERS[name]
    left = [float(terms(p, exact_map(), gaussian_batch, taught()).logs[key]) for p in (coarse, fine)]
    wrong = [float(terms(p, exact_map(0.1), gaussian_batch, taught()).logs[key]) for p in (coarse, fine)]
    assert left[0] / left[1] == pytest.approx(order, rel=0.25)
    assert wrong[1] > 4 * left[1]


@pytest.mark.parametrize("name", sorted(ORDERS.keys() - {"imm"}))
def test_the_exact_map_is_nearly_stationary(name, exact_map, taught, gaussian_batch):
    params = ORDERS[name][1]
    here, there = (slope(params, exact_map(p), gaussian_batch, taught()) for p in (0.0, 0.1))
    assert there > 0, "downhill is back to the exact map"
    assert abs(here) < 0.1 * there


class TestIMM:
    def test_a_group_shares_its_times_and_groups_differ(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map())
        terms(imm(0.1), net, gaussian_batch, taught())
        for times in (net.asked[0][1], net.asked[0][2], net.asked[1][1]):
            groups = times.reshape(-1, 4)
            assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique()) > 60
        t, s, r = net.asked[0][1], net.asked[0][2], net.asked[1][1]
        assert torch.equal(net.asked[1][2], s) and ((t <= r) & (r <= s)).all()
        torch.testing.assert_close(r, torch.minimum(t + 0.1, s))

    def test_without_a_teacher_the_pair_is_interpolated(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map())
        terms(imm(0.1), net, gaussian_batch, taught(teacher=False))
        x_r, r = net.asked[1][:2]
        torch.testing.assert_close(x_r, interpolate(gaussian_batch.x0, gaussian_batch.x1, r))

    def test_the_exact_map_is_stationary_on_average(self, exact_map, taught, gaussian_batch):
        """The kernel has a kink where particles agree, so that single gradients do not vanish."""
        gradients = {}
        for strength in (0.0, 0.1):
            draws = []
            for step in range(30):
                rows = torch.randn(2, *gaussian_batch.x1.shape, generator=torch.Generator().manual_seed(step))
                x1, x0 = rows.double()
                batch = type(gaussian_batch)(x1=STD * x1, x0=x0, y=gaussian_batch.y)
                draws.append(slope(imm(0.02), exact_map(strength), batch, taught(step, teacher=False)))
            gradients[strength] = torch.tensor(draws)
        error = {strength: float(g.std()) / math.sqrt(len(g)) for strength, g in gradients.items()}
        assert abs(float(gradients[0.0].mean())) < 3 * error[0.0]
        assert float(gradients[0.1].mean()) > 6 * error[0.1]

    def test_rows_that_are_no_groups_are_refused(self, exact_map, taught, gaussian_batch):
        with pytest.raises(ValueError, match=r"loss\.particles: 256 rows are not groups of 5"):
            terms(imm(0.1, particles=5), exact_map(), gaussian_batch, taught())

    def test_the_default_step_is_one_of_noise(self):
        method = methods.build(IMMParams())
        t = torch.tensor([0.006, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64)
        noise = (1 - t) / t
        r = method.nearer(t)
        torch.testing.assert_close((1 - r) / r, (noise - 160 / 4096).clamp(min=0))
        assert r[-1] == 1

    def test_the_weight_is_that_of_the_paper(self):
        """1/2 sigmoid(b - lambda) (-dlambda/dtau) alpha^a / (alpha^2 + sigma^2), noise at tau = 1."""
        method = methods.build(IMMParams())
        tau = torch.linspace(0.05, 0.95, 7, dtype=torch.float64, requires_grad=True)
        snr = 2 * torch.log((1 - tau) / tau)
        (slope,) = torch.autograd.grad(snr.sum(), tau)
        expected = 0.5 * torch.sigmoid(4 - snr) * -slope * (1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2)
        torch.testing.assert_close(method.weight(1 - tau), expected)

    def test_one_particle_has_a_kernel_of_the_distance(self, exact_map, taught, gaussian_batch):
        net, ctx = exact_map(0.3), taught()
        result = terms(imm(0.1, particles=1), net, gaussian_batch, ctx)
        recorder = Recorder(net)
        terms(imm(0.1, particles=1), recorder, gaussian_batch, taught())
        a, b = (flow_map(x, t, s, net(x, t, s, y)) for x, t, s, y in recorder.asked)
        t, s = recorder.asked[0][1:3]
        distance = (a - b).flatten(1).norm(dim=1) / (6 * (s - t).clamp(min=1e-4))
        torch.testing.assert_close(
            result.logs["mmd_imm"], (2 - 2 * torch.exp(-distance)).mean().detach(), rtol=1e-5, atol=0
        )

    def test_particles_of_one_law_are_near_and_of_another_far(self):
        """Between independent samples the estimate is 2 / M (1 - mean kernel) at equal laws."""
        method = methods.build(imm(0.1, particles=64))
        draws = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, 64 * 50, 2, 3, 1, generator=draws, dtype=torch.float64)
        gap = torch.full((50,), 0.5, dtype=torch.float64)
        same = float(method._discrepancy(a, b, gap).mean())
        other = float(method._discrepancy(a, b + 1, gap).mean())
        wider = float(method._discrepancy(a, 2 * b, gap).mean())
        assert 0 < same < 2 / 64
        assert other > 4 * same and wider > 2 * same


class TestShortcut:
    def params(self, grid=16, **given):
        return ShortcutParams(grid=grid, **{"bootstrap": 0.5, "longest": 0.0, "clamp": None, **given})

    def bootstrapped(self, ctx, batch, jumps, **given):
        """Start, end and target of a jump of size 1 / jumps from every row."""
        count = torch.full((len(batch.x1),), jumps)
        t = (ctx.rng.uniform("t") * count).floor() / count
        at = PathSample(batch, ctx, t)
        s = at.t + 1 / jumps
        method = methods.build(self.params(**given))
        return at, s, method._two_jumps(at, torch.arange(len(t)), s, count, ctx)

    @pytest.mark.parametrize("jumps", [1, 2, 4])
    def test_two_exact_jumps_are_one(self, jumps, exact_map, taught, gaussian_batch):
        at, s, target = self.bootstrapped(taught(), gaussian_batch, jumps)
        torch.testing.assert_close(target, exact_map()(at.x, at.t, s, at.y), rtol=1e-12, atol=1e-12)

    def test_the_smallest_jumps_are_euler_steps(self, exact_map, taught, gaussian_batch):
        """Two of them miss the jump by an error of first order in their size, second in what they carry."""
        missed = []
        for grid in (64, 128):
            at, s, target = self.bootstrapped(taught(), gaussian_batch, grid // 2, grid=grid)
            exact = exact_map()(at.x, at.t, s, at.y).detach()
            missed.append(float((target - exact).square().mean().sqrt()))
        assert missed[0] / missed[1] == pytest.approx(2, rel=0.1)

    def test_velocity_rows_vanish_at_the_exact_map(self, exact_map, taught, gaussian_batch):
        exact = terms(self.params(grid=128), exact_map(), gaussian_batch, taught())
        wrong = terms(self.params(grid=128), exact_map(0.1), gaussian_batch, taught())
        assert float(exact.logs["velocity_shortcut"]) < 1e-14
        assert float(exact.logs["residual_shortcut"]) < 1e-2
        assert float(wrong.logs["velocity_shortcut"]) > 5e-2
        assert float(wrong.logs["residual_shortcut"]) > 5e-2
        assert slope(self.params(grid=128), exact_map(0.1), gaussian_batch, taught()) > 1e-3

    def test_times_lie_on_the_grid_of_their_jump(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map())
        terms(self.params(grid=16), net, gaussian_batch, taught())
        _, t, s, _ = net.asked[0]
        sizes = (s - t)[s > t]
        assert 0.4 < len(sizes) / len(t) < 0.6
        assert sizes.unique().tolist() == [1 / 8, 1 / 4, 1 / 2, 1]
        assert ((t / (s - t))[s > t] % 1 == 0).all() and ((16 * t) % 1 == 0).all()

    def test_guidance_enters_at_the_smallest_jumps_only(self, exact_map, taught, gaussian_batch):
        ctx = taught(teacher=False)
        for jumps in (8, 4):
            ctx.target = Recorder(exact_map())
            self.bootstrapped(ctx, gaussian_batch, jumps)
            for _, t, s, y in ctx.target.asked:
                assert int((y == ctx.null).sum()) == len(y) / 2, "of fixed shape, whatever the sizes are"
                assert ((s == t) if jumps == 8 else (s > t)).all()
        ctx = taught()
        ctx.target = Recorder(exact_map())
        self.bootstrapped(ctx, gaussian_batch, 8)
        assert all((asked[3] != ctx.null).all() for asked in ctx.target.asked)

    def test_the_guided_step_is_the_conditional_one_moved_away(self, exact_map, taught, gaussian_batch):
        class Labelled(nn.Module):
            def forward(self, x, t, s, y):
                return torch.ones_like(x) * append_dims(y.double(), x)

        ctx = taught(teacher=False)
        ctx.target = Labelled()
        _, _, target = self.bootstrapped(ctx, gaussian_batch, 8, guidance=3.0)
        # Labels are 0, the null label 1: 0 + (3 - 1) (0 - 1).
        torch.testing.assert_close(target, torch.full_like(target, -2.0))

    def test_clamp_bounds_the_target(self, taught, gaussian_batch):
        _, _, free = self.bootstrapped(taught(), gaussian_batch, 4)
        _, _, bounded = self.bootstrapped(taught(), gaussian_batch, 4, clamp=0.5)
        assert float(free.abs().max()) > 0.5 and float(bounded.abs().max()) == 0.5

    def test_clamp_bounds_the_point_between_the_jumps(self, exact_map, taught, gaussian_batch):
        ctx = taught()
        ctx.target = Recorder(exact_map())
        self.bootstrapped(ctx, gaussian_batch, 4, clamp=0.5)
        start, middle = (asked[0].abs().max() for asked in ctx.target.asked)
        assert float(start) > 0.5 and float(middle) == 0.5

    def test_rows_that_learn_jumps_keep_their_labels(self, exact_map, taught, gaussian_batch):
        net, ctx = Recorder(exact_map()), taught(teacher=False)
        ctx.label_dropout = 0.4
        terms(self.params(), net, gaussian_batch, ctx)
        _, t, s, y = net.asked[0]
        assert (y[s > t] == 0).all() and 0.2 < float((y[s == t] == ctx.null).double().mean()) < 0.6

    def test_the_longest_jump_has_a_quarter_of_the_jumps(self, exact_map, taught, gaussian_batch):
        """Seven sizes have four rows each of the release's 32, and d = 1 the four that are left."""
        jumps = []
        for step in range(40):
            net = Recorder(exact_map())
            terms(self.params(grid=128, longest=0.125), net, gaussian_batch, taught(step))
            t, s = net.asked[0][1:3]
            jumps.append((s - t)[s > t])
        sizes, counts = torch.cat(jumps).unique(return_counts=True)
        assert sizes.tolist() == [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
        shares = counts / counts.sum()
        assert shares.tolist() == pytest.approx([1 / 8] * 6 + [1 / 4], abs=0.02)

    def test_it_asks_for_its_moving_average(self, exact_map, exact_context, gaussian_batch):
        assert methods.build(self.params()).target_decay == 0.999
        with pytest.raises(ValueError, match=r"Shortcut\.target_decay as ctx\.target"):
            terms(self.params(), exact_map(), gaussian_batch, exact_context())

    def test_the_grid_is_a_power_of_two(self):
        with pytest.raises(ValueError, match="grid 12 is no power of two"):
            self.params(grid=12)
