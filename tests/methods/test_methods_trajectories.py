"""iCT, CTM and TCM, on the exact flow map."""

from __future__ import annotations

import math

import pytest
import torch
from jump_factories import Recorder, ctm, ict, slope, tcm, terms

from fewstep import methods
from fewstep.core.losses import mean_square
from fewstep.core.path import flow_map, interpolate
from fewstep.core.path_sample import PathSample
from fewstep.methods.ctm.loss import _intervals
from fewstep.methods.ict.params import ICTParams
from fewstep.methods.tcm.params import TCMParams


class TestICT:
    def test_the_schedule_doubles_in_equal_parts(self):
        method = methods.build(ICTParams())
        intervals = method.intervals(torch.arange(0.0, 800_000, 1000), 800_000).tolist()
        assert list(dict.fromkeys(intervals)) == [10 * 2**k for k in range(8)]
        assert {intervals.count(n) for n in intervals} == {100}
        few = methods.build(ICTParams(intervals=[4, 16]))
        assert few.intervals(torch.arange(9.0), 9).tolist() == [4, 4, 4, 8, 8, 8, 16, 16, 16]
        assert few.intervals(torch.tensor(1.0), 2) == 8, "shorter than its stages"

    def test_intervals_follow_the_law_of_ln_sigma(self, exact_map, taught, gaussian_batch):
        """Half of the draws lie below the median of ln sigma, up to the grid."""
        asked = []
        for step in range(40):
            net = Recorder(exact_map())
            terms(ict(40), net, gaussian_batch, taught(step))
            asked.append(net.asked[0][1])
        t = torch.cat(asked)
        below = ((1 - t) / t).log() < -0.407
        assert float(below.double().mean()) == pytest.approx(0.5, abs=0.05)
        assert len(t.unique()) > 30

    def test_loss_by_hand(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map(0.3))
        result = terms(ict(20, huber=0.1), net, gaussian_batch, taught())
        (x, t, one, y), (x_r, r, *_) = net.asked
        assert (one == 1).all()
        ours = flow_map(x, t, one, net.net(x, t, one, y))
        target = flow_map(x_r, r, one, net.net(x_r, r, one, y))
        ramp = torch.linspace(0, 1, 21, dtype=torch.float64)
        sigma = (160 ** (1 / 7) + ramp * (0.004 ** (1 / 7) - 160 ** (1 / 7))) ** 7
        times = 1 / (1 + sigma)
        times[0], times[-1] = 0, 1
        i = (times[:, None] - t).abs().argmin(0)
        torch.testing.assert_close(t, times[i])
        torch.testing.assert_close(r, times[i + 1])
        distance = ((ours - target).square().flatten(1).mean(1) + 0.01).sqrt() - 0.1
        torch.testing.assert_close(result.loss, (distance / (sigma[i] - sigma[i + 1])).mean())

    def test_the_last_target_is_the_data(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map(0.3))
        terms(ict(2, mean=-9.0, std=0.1), net, gaussian_batch, taught(teacher=False))
        x_r, r = net.asked[1][:2]
        assert (r == 1).all() and torch.allclose(x_r, gaussian_batch.x1)


class TestCTM:
    def test_times_are_ordered_and_of_the_grid(self, exact_map, taught, gaussian_batch):
        net, ctx = Recorder(exact_map()), taught()
        ctx.target = Recorder(exact_map())
        terms(ctm(20, solver_steps=4, dsm=0.0), net, gaussian_batch, ctx)
        t, s = net.asked[0][1:3]
        u = ctx.target.asked[1][1]
        assert ((t < u) & (u <= s)).all() and (s == 1).any() and (u < s).any()
        grid = torch.cat([t, s]).unique()
        assert len(grid) == 20
        steps = torch.searchsorted(grid, u) - torch.searchsorted(grid, t)
        assert sorted(steps.unique().tolist()) == [1, 2, 3, 4]

    def test_many_solver_steps_are_the_flow(self, exact_map, taught, gaussian_batch):
        method, ctx = methods.build(ctm(65, solver="heun", solver_steps=39)), taught()
        times = torch.linspace(0, 1, 65, dtype=torch.float64)
        share, i, k, _ = _intervals(65, 39, torch.device("cpu"))
        drawn = torch.searchsorted(share, ctx.rng.strata("interval"))
        i, k = i[drawn], k[drawn]
        assert sorted((k - i).unique().tolist())[:2] == [1, 2] and int((k - i).max()) > 20
        at = PathSample(gaussian_batch, ctx, times[i])
        solved = method._solve(at, times, i, k, ctx)
        F = exact_map()(at.x, at.t, times[k], at.y)
        torch.testing.assert_close(solved, flow_map(at.x, at.t, times[k], F), rtol=2e-3, atol=2e-3)

    def test_without_a_teacher_the_pair_is_interpolated(self, exact_map, taught, gaussian_batch):
        ctx = taught(teacher=False)
        ctx.target = Recorder(exact_map())
        terms(ctm(20), exact_map(), gaussian_batch, ctx)
        x_u, u = ctx.target.asked[1][:2]
        torch.testing.assert_close(x_u, interpolate(gaussian_batch.x0, gaussian_batch.x1, u))

    def test_the_gradient_passes_through_the_jump_to_the_data(self, exact_map, taught, gaussian_batch):
        """By hand: of the squared difference after two jumps, by the perturbation of the first alone."""
        net, ctx = exact_map(0.2), taught()
        ctx.target = Recorder(exact_map(0.1)).requires_grad_(False)
        params = ctm(13, dsm=0.0)
        found = slope(params, net, gaussian_batch, ctx)
        t, s, y = ctx.target.asked[1][1], ctx.target.asked[0][1], gaussian_batch.y
        recorder = Recorder(net)
        terms(params, recorder, gaussian_batch, ctx)
        x, t, s, y = recorder.asked[0]
        x_u, u = ctx.target.asked[1][:2]
        average, one = exact_map(0.1), torch.ones_like(s)

        def end(x, t, s, first):
            x = flow_map(x, t, s, first(x, t, s, y))
            return flow_map(x, s, one, average(x, s, one, y))

        target = end(x_u, u, s, average).detach()
        strength = [exact_map(0.2 + shift) for shift in (1e-5, -1e-5)]
        ahead, behind = (mean_square(end(x, t, s, first), target).mean().item() for first in strength)
        assert found == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)

    def test_score_matching_vanishes_at_the_exact_velocity(self, exact_map, taught, gaussian_batch):
        right = terms(ctm(13), exact_map(), gaussian_batch, taught())
        wrong = terms(ctm(13), exact_map(0.1), gaussian_batch, taught())
        assert float(right.logs["loss_dsm"]) < 1e-15
        assert float(wrong.logs["loss_dsm"]) > 1e-3
        assert wrong.loss > wrong.logs["loss_ctm"] + 0.9 * wrong.logs["loss_dsm"]

    def test_it_asks_for_its_moving_average(self, exact_map, exact_context, gaussian_batch):
        assert methods.build(ctm(13)).target_decay == 0.999
        with pytest.raises(ValueError, match=r"CTM\.target_decay as ctx\.target"):
            terms(ctm(13), exact_map(), gaussian_batch, exact_context())


class TestTCM:
    second = TCMParams(boundary=0.4, least=1 / 8)

    def test_the_step_shrinks_in_stages(self):
        method = methods.build(TCMParams(double=100))
        t = torch.tensor([0.1, 0.3], dtype=torch.float64)
        noise = (1 - t) / t
        for step, share in {0: 4, 99: 4, 100: 16, 250: 64, 300: 256, 999: 256}.items():
            r = method.nearer(t, torch.tensor(float(step)))
            expected = noise * (1 - (1 + 8 / (1 + torch.exp(noise / 2))) / share)
            torch.testing.assert_close((1 - r) / r, expected)
        near = torch.tensor([0.9], dtype=torch.float64)
        assert method.nearer(near, torch.tensor(0.0)) == 1, "a step past the data ends there"

    def test_stage_two_goes_on_where_stage_one_ends(self):
        """The release resumes the count of stage 1, whose share is then at its limit."""
        t = torch.tensor([0.1, 0.3], dtype=torch.float64)
        first, second = methods.build(TCMParams()), methods.build(TCMParams(boundary=1 / 3))
        begin, end = torch.tensor(0.0), torch.tensor(300_000.0)
        for step in (begin, torch.tensor(50_000.0)):
            torch.testing.assert_close(second.nearer(t, step), first.nearer(t, end))
        assert (first.nearer(t, begin) > first.nearer(t, end)).all()

    def test_stage_one_by_hand(self, exact_map, taught, gaussian_batch):
        params = tcm(1 / 8, huber=0.1)
        net = Recorder(exact_map(0.3))
        result = terms(params, net, gaussian_batch, taught())
        (x, t, one, y), (x_r, r, *_) = net.asked
        ours = flow_map(x, t, one, net.net(x, t, one, y))
        target = flow_map(x_r, r, one, net.net(x_r, r, one, y))
        distance = ((ours - target).square().flatten(1).mean(1) + 0.01).sqrt() - 0.1
        sigma = (1 - t) / t
        # 1 / c_out^2 of EDM with data of unit variance: (sigma^2 + 1) / sigma^2.
        torch.testing.assert_close(result.loss, (distance * (sigma**2 + 1) / sigma**2).mean())

    def test_stage_two_stays_on_its_side(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map())
        terms(self.second, net, gaussian_batch, taught())
        t = net.asked[0][1]
        assert float(t.max()) == pytest.approx(0.4) and float(t.min()) > 1 / 162
        assert float(((t - 0.4).abs() < 1e-6).double().mean()) == pytest.approx(0.25, abs=0.08)

    def test_its_noise_levels_are_heavy_tailed(self, exact_map, taught, gaussian_batch):
        """F(n) = asinh(n / tail) / asinh(n_max / tail), n = ln(sigma / sigma')."""
        levels = []
        for step in range(10):
            net = Recorder(exact_map())
            terms(self.second, net, gaussian_batch, taught(step))
            t = net.asked[0][1]
            levels.append(((1 - t[t < 0.4]) / t[t < 0.4] / 1.5).log())
        n = torch.cat(levels)
        widest = math.asinh(math.log(160 / 1.5) / 0.02)
        for bound in (0.01, 0.1, 1.0):
            expected = math.asinh(bound / 0.02) / widest
            assert float((n < bound).double().mean()) == pytest.approx(expected, abs=0.03)

    def test_beyond_the_boundary_the_frozen_network_answers(self, exact_map, taught, gaussian_batch):
        """By hand; the learning network is not asked at the boundary, where every row ends beyond it."""
        net, ctx = Recorder(exact_map(0.2)), taught()
        ctx.teacher_net = Recorder(exact_map(0.5))
        result = terms(self.second, net, gaussian_batch, ctx)
        (x, t, one, y), (_, own, *_) = net.asked
        ((x_r, r, *_),) = ctx.teacher_net.asked
        beyond = r > 0.4
        assert torch.equal(own, r[(t - 0.4).abs() > 1e-6])
        assert (own > 0.4).any() and (own <= 0.4).any()
        F = exact_map(0.5)(x_r, r, one, y).where(beyond[:, None, None, None], exact_map(0.2)(x_r, r, one, y))
        gap = flow_map(x, t, one, net.net(x, t, one, y)) - flow_map(x_r, r, one, F)
        distance = (gap.square().flatten(1).mean(1) + 0.00108**2).sqrt() - 0.00108
        weight = torch.where((t - 0.4).abs() < 1e-6, 0.1 / 0.25, 1 / 0.75)
        torch.testing.assert_close(result.loss, ((1 + (t / (1 - t)) ** 2) * distance * weight).mean())

    def test_boundary_rows_count_by_their_weight(self, exact_map, taught, gaussian_batch):
        """Weights 0.1 / 0.25 and 1 / 0.75 make two means out of one, in expectation."""
        light, heavy = (
            terms(
                self.second.model_copy(update={"boundary_weight": w}),
                exact_map(0.2),
                gaussian_batch,
                taught(),
            )
            for w in (0.1, 1.1)
        )
        net = Recorder(exact_map(0.2))
        terms(self.second, net, gaussian_batch, taught())
        x, t, one, y = net.asked[0]
        pinned = (t - 0.4).abs() < 1e-6
        r = methods.build(self.second).nearer(t, torch.tensor(0.0))
        x_r = interpolate(gaussian_batch.x0, gaussian_batch.x1, r)
        ours = flow_map(x, t, one, net.net(x, t, one, y))
        target = flow_map(x_r, r, one, exact_map()(x_r, r, one, y))
        e = (ours - target).square().flatten(1).mean(1)
        edge = ((1 + 1.5**-2) * ((e + 0.00108**2).sqrt() - 0.00108))[pinned].sum() / len(t) / 0.25
        torch.testing.assert_close(heavy.loss - light.loss, edge)

    def test_the_direction_is_the_data_s_by_default(self, exact_map, taught, gaussian_batch):
        net = Recorder(exact_map())
        terms(TCMParams(), net, gaussian_batch, taught())
        x_r, r = net.asked[1][:2]
        torch.testing.assert_close(x_r, interpolate(gaussian_batch.x0, gaussian_batch.x1, r))

    def test_stage_two_asks_for_the_first(self, exact_map, exact_context, gaussian_batch):
        with pytest.raises(ValueError, match=r"network of stage 1 as ctx\.teacher_net"):
            terms(self.second, exact_map(), gaussian_batch, exact_context())
        with pytest.raises(ValueError, match="no velocity"):
            TCMParams(boundary=0.5, direction="teacher")
