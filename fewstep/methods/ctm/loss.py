"""CTM, consistency trajectory models (arXiv 2310.02279, section 3): jumps between any two times.

Soft consistency at grid times t < u <= s: a jump from t to s against the solver's way to u and
the jump from there, compared after a further jump to the data,

    L_ctm = mean (f^(f(x_t, t, s), s, 1) - sg f^(f^(x_u, u, s), s, 1))^2,   x_u = Solver(x_t, t -> u)

with f^ made of the network's moving average; its input carries the gradient of the first. The solver
takes at most ``solver_steps`` Heun steps along the guided teacher velocity. Without a teacher x_u is the
interpolant of the same data and noise. Denoising score matching keeps F at s = t a velocity:

    L_dsm = mean (F(x_t', t', t') - v)^2,   L = L_ctm + dsm L_dsm

Mapping: the paper has x = x1 + sigma x0 and G(x, t, s) = (s / t) x + (1 - s / t) g(x, t, s) with times in
sigma, and data of deviation 1/2. Beside data of unit variance sigma doubles: the grid spans 0.004 to 160, and
the logit of t in L_dsm has the mean 1.2 - ln 2 = 0.507. With t = 1 / (1 + sigma) and x_t = t x, G is f(x_t,
t, s) = x_t + (s - t) F and g = x_t + (1 - t) F.

Deviations from the paper:

* No adversarial loss, to which the paper owes its best one-step numbers: without it its own FID of one step
  on CIFAR-10 goes from 2.28 to 5.19.
* The distance is a mean square of latents; the paper compares decoded images by LPIPS.
* ``dsm`` is a constant, not balanced by gradient norms of the last layer, and L_dsm follows the
  teacher's velocity where there is one, so that both terms want the same guidance.
* L_dsm is one mean square of velocities, with t' of EDM's law; the paper weights denoised images.
* Each row draws its own t, u and s, and so its number of solver steps; a batch is stratified by it. The
  release draws that number once for a batch, k with odds k, then the grid times t that leave room for it.
* Heun's steps are taken in t, the release's in sigma. Half of its times of L_dsm are even on Karras' scale.
* The jump to s within the target is the moving average's, as released; the paper writes the network itself.
* The ends of the grid are moved to t = 0 and 1 (core/times.py).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ...core.losses import mean_square, rms
from ...core.method import Batch, Context, LossOutput, Method
from ...core.path import append_dims, flow_map, interpolate
from ...core.path_sample import PathSample
from ...core.precision import upcast
from ...core.rng import stratum
from ...core.times import karras_grid, sample_times
from .params import CTMParams


class CTM(Method):
    params: CTMParams

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        p = self.params
        if ctx.target is None:
            raise ValueError("ctm needs the moving average of CTM.target_decay as ctx.target")
        times = karras_grid(p.points, batch.x1.device)[1].to(batch.x1.dtype)
        # Indices of t, u and s.
        share, i, k, j = _intervals(p.points, p.solver_steps, batch.x1.device)
        drawn = torch.searchsorted(share, ctx.rng.strata("interval")).clamp(max=len(share) - 1)
        i, k, j = i[drawn], k[drawn], j[drawn]
        at = PathSample(batch, ctx, times[i])
        u, s = times[k], times[j]
        own = self._to_data(ctx.target, _jump(net, at.x, at.t, s, at.y), s, at.y)
        with torch.no_grad():
            x_u = self._solve(at, times, i, k, ctx) if ctx.teacher else interpolate(batch.x0, batch.x1, u)
            target = self._to_data(ctx.target, _jump(ctx.target, x_u, u, s, at.y), s, at.y)
        loss = mean_square(own, target).mean()
        residual = (rms((own - target).detach()) / (u - at.t)).mean()
        logs = {"loss_ctm": loss.detach(), "residual_ctm": residual}
        if p.dsm:
            point = PathSample(batch, ctx, sample_times(p.times, ctx.rng, "dsm"))
            dsm = mean_square(net(point.x, point.t, point.t, point.y), point.v).mean()
            logs["loss_dsm"] = dsm.detach()
            loss = loss + p.dsm * dsm
        return LossOutput(loss, logs)

    def _to_data(self, target: nn.Module, x: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Where the moving average carries x from s to the data, with the gradient of x."""
        return _jump(target, x, s, torch.ones_like(s), y)

    def _solve(self, at: PathSample, times: Tensor, i: Tensor, k: Tensor, ctx: Context) -> Tensor:
        """x_u: Heun steps of the teacher from grid point i to grid point k, (B, C, H, W)."""
        assert ctx.teacher is not None
        p, x = self.params, upcast(at.x).clone()
        for n in range(p.solver_steps):
            rows = ctx.rng.choose(_solved, p.points, p.solver_steps, n).inside
            if not len(rows):
                break
            here, y = i[rows] + n, at.y[rows]
            now, after = (times[index.clamp(max=len(times) - 1)] for index in (here, here + 1))
            start, gap = x[rows], append_dims((after - now).where(here < k[rows], 0), x)
            v = upcast(ctx.teacher(start.to(at.x.dtype), now, y))
            if p.solver == "heun":
                v = (v + upcast(ctx.teacher((start + gap * v).to(at.x.dtype), after, y))) / 2
            x[rows] = start + gap * v
        return x.to(at.x.dtype)


def _jump(net: nn.Module, x: Tensor, t: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """f(x, t, s), in x's precision."""
    return flow_map(x, t, s, upcast(net(x, t, s, y))).to(x.dtype)


@cache
def _intervals(points: int, most: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cumulative probabilities, float64, and indices i < k <= j of t, u and s, (N,) each, by rising k - i.

    i is uniform, j uniform above i, and k uniform above i up to j and to ``most`` steps.
    """
    i, k, j = torch.cartesian_prod(*3 * [torch.arange(points)]).unbind(1)
    i, k, j = (index[(i < k) & (k <= j) & (k - i <= most)] for index in (i, k, j))
    order = torch.argsort(k - i, stable=True)
    i, k, j = i[order], k[order], j[order]
    share = 1 / ((points - 1) * (points - 1 - i) * (j - i).clamp(max=most)).double()
    return share.cumsum(0).to(device), i.to(device), k.to(device), j.to(device)


def _solved(place: Tensor, total: int, points: int, most: int, step: int) -> Tensor:
    """Whether the row at each place may have more than ``step`` solver steps in its stratum."""
    share, i, k, _ = _intervals(points, most, torch.device("cpu"))
    last = torch.searchsorted(share, (stratum(place, total) + 1) / total).clamp(max=len(share) - 1)
    return (k - i)[last] > step
