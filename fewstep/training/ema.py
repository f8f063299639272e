"""Exponential moving average of weights.

The power form keeps the averaging window a fixed share of training: at update k = 0, 1, ...

    average <- beta_k average + (1 - beta_k) weights,   beta_k = (1 - 1 / (k + 1))^(1 + gamma),

so the first update copies the weights (EDM2, arXiv 2312.02696, section 3.1 and appendix C).

An average may live in a network of its own, which losses then call: the target network of consistency
training. ``Approach`` is the decay of UCGM's and TwinFlow's releases: it starts at 0, where the average
is the network itself, and nears its last value within a few times 1 / (1 - decay) updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config.settings import ConstantEma, PowerEma
from ..core.wrappers import trained_state, unwrap
from .parallel import local_tensor


def power_gamma(sigma_rel: float) -> float:
    """Exponent gamma whose averaging profile has relative standard deviation ``sigma_rel``.

    Solves sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)) by bisection, on the branch
    where sigma_rel falls with gamma.
    """

    def width(gamma: float) -> float:
        return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))

    low, high = -0.1, 2 / sigma_rel
    if not width(high) < sigma_rel <= width(low):
        raise ValueError(f"sigma_rel is {sigma_rel}: must lie between 0 and 0.289")
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if width(middle) > sigma_rel else (low, middle)
    return low


@dataclass(frozen=True)
class Approach:
    """Decay d_0 = 0, d_(k+1) = d_k + (1 - d_k) (decay - d_k) / 2."""

    decay: float

    def decays(self) -> list[float]:
        """d_0, d_1, ... up to where they no longer change."""
        found = [0.0]
        while len(found) < 2 or found[-1] != found[-2]:
            last = found[-1]
            found.append(last + (1 - last) * (self.decay - last) / 2)
        return found


class Ema:
    """Float32 average of a module's parameters beside a copy of its buffers.

    Keys are those of the bare module, whether the module given is wrapped or not. The average lives where
    the module lives at construction and is sharded as it is, so move and shard the module first. Of adapters
    on a frozen network it has the trained weights alone.
    ``tensors()`` and ``updates`` are its state.

    Args:
        into: a copy of the module, laid out as it is, whose own weights are then the average.
    """

    def __init__(
        self, module: nn.Module, law: PowerEma | ConstantEma | Approach, into: nn.Module | None = None
    ) -> None:
        bare = unwrap(module)
        self._law = law
        self._gamma = power_gamma(law.sigma_rel) if isinstance(law, PowerEma) else 0.0
        device = next(bare.parameters()).device
        self.updates = torch.zeros((), dtype=torch.int64, device=device)
        self._decays = torch.tensor(law.decays() if isinstance(law, Approach) else [], dtype=torch.float64)
        self._decays = self._decays.to(device)
        self._names = {name for name, _ in bare.named_parameters(remove_duplicate=False)}
        self._into = into
        self._own = {} if into is not None else {n: self._copy(n, w) for n, w in trained_state(bare).items()}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if name in self._names:
            return tensor.detach().to(torch.float32, copy=True)
        return tensor.detach().clone()

    def beta(self, update: Tensor) -> Tensor:
        """Weight of the old average at update 0, 1, ... (), float64."""
        if isinstance(self._law, Approach):
            return self._decays.index_select(0, update.clamp(max=len(self._decays) - 1).reshape(1))[0]
        update = update.double()
        if isinstance(self._law, PowerEma):
            return (1 - 1 / (update + 1)) ** (1 + self._gamma)
        if self._law.ramp:
            return ((1 + update) / (10 + update)).clamp(max=self._law.decay)
        return torch.full_like(update, self._law.decay)

    def update(self, module: nn.Module, taken: Tensor | None = None) -> None:
        """Take in the weights after one optimizer update; buffers are copied.

        Args:
            taken: whether there was an update, (), bool; None means yes. Without one nothing changes.
        """
        state, own = trained_state(module), self.tensors()
        share = 1 - self.beta(self.updates)
        if taken is not None:
            share = share.where(taken, 0)
        shares = {dtype: share.to(dtype) for dtype in {own[name].dtype for name in self._names & own.keys()}}
        with torch.no_grad():
            for name in own:
                if name in self._names:
                    average, live = local_tensor(own[name]), local_tensor(state[name])
                    average.lerp_(live.to(average.dtype), shares[average.dtype])
                else:
                    own[name].copy_(state[name])
        self.updates += 1 if taken is None else taken.long()

    def tensors(self) -> dict[str, Tensor]:
        """The averaged state dict, float32 parameters and buffers as they are (not copies)."""
        # Asked anew each time: FSDP2 may replace the tensors behind its parameters, and must gather a
        # changed part again.
        return self._own if self._into is None else trained_state(self._into)
