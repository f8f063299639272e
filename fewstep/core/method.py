"""The contract between the trainer and a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from .rng import Streams


@dataclass(frozen=True)
class Batch:
    """One slice of the global batch."""

    x1: Tensor
    """Data (latents or images), (B, C, H, W)."""
    x0: Tensor
    """Standard normal noise of the same shape, drawn per sample."""
    y: Tensor
    """Class labels, (B,), int64."""


class Velocity(Protocol):
    """The field that a method follows: teacher with guidance, or x1 - x0 without a teacher."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor: ...


@dataclass
class Context:
    """All that a loss may use beside the network and the batch."""

    step: int
    steps: int
    rng: Streams
    """Named random streams over the rows of the global batch; the same for any world size."""
    null: int
    """Label of the unconditional class."""
    jvp: Callable[..., tuple[Tensor, Tensor]]
    """value_and_tangent of core/jvp.py."""
    teacher: Velocity | None = None
    """Guided teacher velocity (no grad), or None when learning from data alone."""
    teacher_net: nn.Module | None = None
    """The frozen teacher's network, without guidance, for methods that jump with it; None without one."""
    target: nn.Module | None = None
    """Moving average of the network, frozen, of decay Method.target_decay; None where that is None."""
    label_dropout: float = 0.0
    extra: nn.Module | None = None
    """The wrapped module that Method.extra returned."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What the updates of one step share, which get the same context; see `path_sample.sample_path`."""

    def follow(self, net: nn.Module) -> nn.Module:
        """The network that gives targets: the moving average if there is one, else ``net`` itself."""
        return net if self.target is None else self.target


@dataclass(frozen=True)
class LossOutput:
    """A scalar loss (mean over the rows given) and what else is worth a line in the log."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


Loss = Callable[[nn.Module, Batch, Context], LossOutput]


class SummedLoss:
    """A loss in parts, whose gradients add up: the trainer goes backward through one before it evaluates the
    next, and so holds the graph of one part at a time. Called, it is the sum of its parts.

    Every part must reach every weight: DistributedDataParallel waits for their gradients.

    Args:
        name: as a function's.
    """

    def __init__(self, name: str, *parts: Loss) -> None:
        self.__name__ = self.__qualname__ = name
        self.parts = parts

    def __call__(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        terms = [part(net, batch, ctx) for part in self.parts]
        logs = {name: value for each in terms for name, value in each.logs.items()}
        return LossOutput(torch.stack([each.loss for each in terms]).sum(), logs)


def loss_parts(loss: Loss) -> Sequence[Loss]:
    """The parts of a sum; any other loss is its own."""
    return loss.parts if isinstance(loss, SummedLoss) else (loss,)


class Method(ABC):
    """A training objective. Losses are pure: no global RNG, no device state, no accelerator."""

    kind: ClassVar[str] = "flow"
    """flow: trains net(x, t, s, y); image: trains another network on images alone."""
    outputs: ClassVar[int] = 1
    """Outputs of the network that it trains: 2 for velocity and flow map."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @abstractmethod
    def updates(self, step: int) -> Sequence[Loss]:
        """The optimizer updates of one training step, in order."""

    @property
    def group(self) -> int:
        """Rows of the batch that a loss treats together: processes and micro-batches hold whole groups."""
        return 1

    @property
    def target_decay(self) -> float | None:
        """Decay per update of the moving average that the losses see as ctx.target; None for none."""
        return getattr(self.params, "target_decay", None)

    @property
    def target_warmup(self) -> bool:
        """Whether that decay is approached from 0 (`core.ema.Approach`) instead of held from the start."""
        return getattr(self.params, "target_warmup", False)

    def extra(self) -> nn.Module | None:
        """Parameters that train along but are not part of the network (none by default)."""
        return None
