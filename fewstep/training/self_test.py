"""Before the first step: are gradients reduced, and is the tangent the derivative?

Both can be wrong without a sign of it in the loss: a network called past its wrapper trains on one
process's gradients, a kernel may give a wrong derivative. The test changes neither weights nor moments
nor random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils import _pytree

from ..core.heads import Output
from ..core.jvp import STEP, central_difference, value_and_tangent
from ..core.path import interpolate
from ..data.loader import Loader

ROWS = 8
TOLERANCE = {"no": 2e-2, "bf16": 0.2, "fp16": 0.1}
"""Largest relative difference of the tangent, by precision; the difference itself is good to 1e-2."""
ANGLE = 0.05
"""Most rad of a sinusoid of the time that the difference steps over."""
SPREAD = 1e-5
"""Largest relative difference of gradients; they are equal, but for sums on unlike devices."""


class SelfTest:
    """Takes the central difference of the bare network in float32, to be compared with later.

    Args:
        net: on its device, neither wrapped nor compiled yet.
        kind: of the method; only a flow has a tangent.
        loader: gives the rows, the same on every process.
        time_scale: highest angular frequency of the network's time embedding, rad per unit time.
        load: is given the labels before the network, to bring what belongs to them.
    """

    def __init__(
        self,
        net: nn.Module,
        kind: str,
        loader: Loader,
        device: torch.device,
        time_scale: float = 1.0,
        load: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._flow = kind == "flow"
        if not self._flow:
            return
        batch = loader.rows(0, slice(0, ROWS), device)
        t = torch.linspace(0.1, 0.8, len(batch.x1), device=device)
        s = (1 + t) / 2
        x = interpolate(batch.x0, batch.x1, t)
        directions = (batch.x1 - batch.x0, torch.ones_like(t), -torch.ones_like(s))
        self._given = (x, t, s), directions, batch.y
        self._load = load or (lambda _: None)
        self._load(batch.y)
        with torch.no_grad():
            step = min(STEP, ANGLE / time_scale)
            self._expected = central_difference(net, *self._given, step)[1]

    def result(
        self,
        accelerator: Accelerator,
        net: nn.Module,
        weights: list[Tensor],
        loss: Tensor,
        tangent: str,
        rows: int | None = None,
    ) -> dict[str, object]:
        """What goes into the model's card; the weights hold gradients of ``loss``.

        A loss that is not finite is only noted: the training counts such updates itself.

        Args:
            rows: how many a training step hands to compiled blocks: the test repeats its own to as many and
                records a graph, so that nothing is compiled for it alone.

        Raises:
            ValueError: gradients differ between processes, or the tangent is not the derivative.
        """
        finite = bool(accelerator.reduce(loss.detach().isfinite().double(), reduction="mean") == 1)
        spread, error = None, None
        if finite:
            spread = _spread(accelerator, weights)
        if self._flow:
            error = self._error(net, tangent, rows)
        limit = TOLERANCE[accelerator.mixed_precision]
        remedy = "; --no-self-test starts in spite of it"
        if spread is not None and not spread <= SPREAD:
            raise ValueError(f"self-test: gradients differ between processes by {spread:.2g}{remedy}")
        if error is not None and not error <= limit:
            raise ValueError(
                f"self-test: the {tangent} tangent differs from a central difference by {error:.2g} of its"
                f" norm (limit {limit}){remedy}"
            )
        return {"loss_finite": finite, "gradient_spread": spread, "tangent": tangent, "tangent_error": error}

    def _error(self, net: nn.Module, tangent: str, rows: int | None) -> float:
        """Relative to the norm over all rows; 0 where both vanish, as in a fresh network."""
        given = (*self._given, self._expected)
        if rows is not None:
            own = len(self._given[2])
            given = _pytree.tree_map(lambda z: z[torch.arange(rows, device=z.device) % own], given)
        inputs, directions, y, expected = given
        self._load(y)
        with torch.set_grad_enabled(rows is not None):
            found = value_and_tangent(net, inputs, directions, y, tangent)[1]
        difference, norm = (_flat(found) - _flat(expected)).norm(), _flat(expected).norm()
        # Two digits: the last ones are rounding, and the card should not change with it.
        return float(f"{float(difference / norm.clamp(min=1e-12)):.1e}")


def _flat(output: Output) -> Tensor:
    """One output, or two one after the other."""
    return output if isinstance(output, Tensor) else torch.cat([each.flatten() for each in output])


def _spread(accelerator: Accelerator, weights: list[Tensor]) -> float | None:
    """Largest relative difference of sums over gradients between processes, 0 as it should be.

    None where each process holds its own part: there is no way past FSDP2.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if any(isinstance(gradient, DTensor) for gradient in gradients):
        return None
    sums = torch.stack([moment for g in gradients for moment in (g.sum(), g.square().sum())])
    everyone = accelerator.gather(sums[None])
    largest = everyone.abs().max()
    spread = float((everyone - everyone[0]).abs().max() / largest) if largest else 0.0
    return spread if math.isfinite(spread) else math.inf
