"""Parameters of the objectives that compare jumps of finite length, and what is asked of them in tests."""

from __future__ import annotations

import torch
from torch import nn

from fewstep import methods
from fewstep.methods.ctm.params import CTMParams
from fewstep.methods.ict.params import ICTParams
from fewstep.methods.imm.params import IMMParams
from fewstep.methods.tcm.params import TCMParams


def terms(params, net, batch, ctx):
    (loss,) = methods.build(params).updates(int(ctx.step))
    return loss(net, batch, ctx)


def slope(params, net, batch, ctx):
    """Gradient of the loss by the strength of the perturbation."""
    return float(torch.autograd.grad(terms(params, net, batch, ctx).loss, net.parameters())[0])


class Recorder(nn.Module):
    """A network that notes what it is asked."""

    def __init__(self, net):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x, t, s, y):
        self.asked.append((x, t, s, y))
        return self.net(x, t, s, y)


def imm(step, **given):
    return IMMParams(decrement="time", step=step, **given)


def ict(intervals, **given):
    return ICTParams(intervals=[intervals, intervals], **given)


def ctm(points, **given):
    return CTMParams(points=points, **{"solver_steps": 1, "solver": "euler", **given})


def tcm(least, **given):
    return TCMParams(q=1 / least, least=least, direction="teacher", **given)
