"""The networks that a training updates in turns, each with an optimizer of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..config.settings import Optimizer
from .optimizer import learning_rate, make_optimizer, set_learning_rate, step_if
from .parallel import full_tensor


class Player:
    """One network, or several that learn together, with their optimizer.

    Args:
        modules: prepared, by their names in the training state.
    """

    def __init__(self, accelerator: Accelerator, options: Optimizer, modules: dict[str, nn.Module]) -> None:
        self._accelerator, self._options, self.modules = accelerator, options, modules
        weights = (weight for module in modules.values() for weight in module.parameters())
        self.weights = [weight for weight in weights if weight.requires_grad]
        self.optimizer = accelerator.prepare(make_optimizer(options, self.weights))

    def set_rate(self, step: int, steps: int) -> float:
        """Set the learning rate of a step of a training of ``steps``, and return it."""
        rate = learning_rate(self._options, step, steps)
        set_learning_rate(self.optimizer.optimizer, rate)
        return rate

    def clip(self) -> Tensor:
        """Norm of all gradients, which are shortened to the limit where there is one."""
        limit = self._options.clip
        norm = self._accelerator.clip_grad_norm_(self.weights, math.inf if limit is None else limit)
        return full_tensor(norm)

    def update(self, finite: Tensor) -> None:
        """One update, or none where ``finite`` (), bool, is false; gradients are dropped."""
        if self._accelerator.scaler is not None:  # it skips by itself
            self.optimizer.step()
        else:
            step_if(self.optimizer.optimizer, finite)
        self.optimizer.zero_grad()


class Skips:
    """Counts of skipped updates, kept on the device, for each of several players."""

    def __init__(self, players: int, device: torch.device) -> None:
        # For each: updates that were skipped in all, in a row until now, and most in a row.
        self._counts = torch.zeros(players, 3, dtype=torch.int64, device=device)

    def restore(self, skipped: int, in_a_row: Iterable[int]) -> None:
        """The counts of a saved state; those in all are told of the players together."""
        self._counts.zero_()
        self._counts[:, 1] = self._counts[:, 2] = torch.tensor(list(in_a_row))
        self._counts[0, 0] = skipped

    def count(self, player: int, finite: Tensor) -> None:
        """Take in an update of the player of this number."""
        bad = (~finite).long()
        skipped, row, most = self._counts[player].unbind()
        row = (row + 1) * bad
        self._counts[player].copy_(torch.stack([skipped + bad, row, torch.maximum(most, row)]))

    def read(self) -> tuple[int, list[int], list[int]]:
        """Skipped in all, in a row until now of each player, and most in a row of each."""
        skipped, row, most = self._counts.T.tolist()
        return sum(skipped), row, most


class Measured(nn.Module):
    """Moving averages of numbers that losses measure, in buffers, without a bias towards their start.

    Args:
        decays: of each average, per update.
    """

    def __init__(self, decays: Mapping[str, float], device: torch.device) -> None:
        super().__init__()
        self._decays = dict(decays)
        for name in decays:
            self.register_buffer(name, torch.zeros((), device=device))
            self.register_buffer(f"{name}_updates", torch.zeros((), dtype=torch.float64, device=device))

    def values(self) -> dict[str, Tensor]:
        """The averages, () each; 0 before the first update."""
        return {name: self.get_buffer(name) for name in self._decays}

    @torch.no_grad()
    def update(self, name: str, value: Tensor, taken: Tensor) -> None:
        """Take in a finite number () of one update, unless ``taken`` (), bool, is false."""
        updates, decay = self.get_buffer(f"{name}_updates"), self._decays[name]
        taken = taken & value.isfinite()
        updates += taken
        share = (1 - decay) / (1 - decay ** updates.clamp(min=1))
        average = self.get_buffer(name)
        average.copy_(average.lerp(value, share.to(average.dtype)).where(taken, average))
