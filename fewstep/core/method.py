"""The contract between the trainer and a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

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
    """A velocity field v(x, t, y): x (B, C, H, W), t and y (B,) -> (B, C, H, W)."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor: ...


@dataclass
class Context:
    """What a loss is given beside the network and the batch; it uses nothing else.

    All that differs from step to step is a tensor, and shapes do not: a step can be captured and replayed.
    """

    step: Tensor
    """Training steps done before this one, (), float64, on the device."""
    steps: int
    """Training steps in all."""
    rng: Streams
    """Named random streams over the rows of the global batch; the same for any world size."""
    null: int
    """Label of the unconditional class."""
    jvp: Callable[..., tuple[Tensor, Tensor]]
    """value_and_tangent of core/jvp.py."""
    teacher: Velocity | None = None
    """The frozen teacher's velocity, guided, without gradient; None when learning from data alone."""
    teacher_net: nn.Module | None = None
    """The frozen teacher's network, without guidance, for methods that jump with it; None without one."""
    target: nn.Module | None = None
    """Moving average of the network, frozen, of decay Method.target_decay; None where that is None."""
    label_dropout: float = 0.0
    """Share of the labels that become ``null`` when learning from data alone."""
    extra: nn.Module | None = None
    """The wrapped module that Method.extra returned."""
    players: Mapping[str, nn.Module] = field(default_factory=dict)
    """The wrapped networks that Method.players returned; see `Turn` for which of them learn."""
    averages: Mapping[str, Tensor] = field(default_factory=dict)
    """Moving averages of what earlier updates have measured, () each; 0 before the first."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What the updates of one step have computed for each other; see `path_sample.sample_path`."""

    def warmed_up(self, steps: int) -> Tensor | float:
        """min(1, step / steps), (); 1 without a warm-up."""
        return (self.step / steps).clamp(max=1) if steps else 1.0

    def follow(self, net: nn.Module) -> nn.Module:
        """The network that gives targets: the moving average if there is one, else ``net`` itself."""
        return net if self.target is None else self.target


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns."""

    loss: Tensor
    """Scalar, mean over the rows given."""
    logs: dict[str, Tensor] = field(default_factory=dict)
    """Further scalars for the log, without gradient."""
    measured: dict[str, Tensor] = field(default_factory=dict)
    """Means over the rows given, () each, for the moving averages that Method.averages names."""


Loss = Callable[[nn.Module, Batch, Context], LossOutput]


@dataclass(frozen=True)
class Turn:
    """An update of a player by a loss of its own.

    Only the network whose turn it is gets gradients; a loss that stands alone is a turn of the student. A
    gradient still passes through the networks at rest to what they are given.
    """

    player: str
    """A key of Method.players."""
    loss: Loss
    second_order: bool = False
    """Whether the loss holds gradients of the player's output: its weights then stay gathered under FSDP2."""


Update = Loss | Turn


class SummedLoss:
    """A loss that is the sum of its parts.

    The trainer goes backward through one part before it evaluates the next, and so holds the graph of one
    part at a time. Every part must reach every weight: DistributedDataParallel waits for their gradients.

    Args:
        name: stands in for a function's name.
    """

    def __init__(self, name: str, *parts: Loss) -> None:
        self.__name__ = self.__qualname__ = name
        self.parts = parts

    def __call__(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        terms = [part(net, batch, ctx) for part in self.parts]
        logs = {name: value for each in terms for name, value in each.logs.items()}
        measured = {name: value for each in terms for name, value in each.measured.items()}
        return LossOutput(torch.stack([each.loss for each in terms]).sum(), logs, measured)


def player_of(update: Update) -> str:
    """The player that an update trains; "" is the student."""
    return update.player if isinstance(update, Turn) else ""


def at_rest(update: Update, net: nn.Module, ctx: Context) -> list[nn.Module]:
    """The networks that an update does not train."""
    others = [player for name, player in ctx.players.items() if name != player_of(update)]
    student = [net] if ctx.extra is None else [net, ctx.extra]
    return student + others if player_of(update) else others


def second_order(update: Update) -> bool:
    """Whether its loss holds gradients of the player's output."""
    return isinstance(update, Turn) and update.second_order


def loss_parts(update: Update) -> Sequence[Loss]:
    """The parts of a summed loss; any other loss is its own only part."""
    loss = update.loss if isinstance(update, Turn) else update
    return loss.parts if isinstance(loss, SummedLoss) else (loss,)


def kind_of_step(updates: Sequence[Update]) -> tuple[str, ...]:
    """Names of a step's updates: steps with the same ones differ in numbers only."""
    return tuple(
        f"{update.player}: {_name(update.loss)}" if isinstance(update, Turn) else _name(update)
        for update in updates
    )


def _name(loss: Loss) -> str:
    return getattr(loss, "__qualname__", repr(loss))


class Method:
    """A training objective; ``params`` say what it needs of network, teacher and schedule.

    Losses are pure: they touch no global random generator, no device state and no accelerator. They never
    wait for the device: no number is read from a tensor, no rows are chosen by what a tensor holds, and no
    tensor is made on the CPU.
    """

    def __init__(self, params: Any) -> None:
        self.params: Any = params

    def loss(self, net: nn.Module, batch: Batch, ctx: Context) -> LossOutput:
        """The loss of a method that has one."""
        raise NotImplementedError

    def updates(self, step: int) -> Sequence[Update]:
        """The losses and turns of one training step, in order: one optimizer update for each."""
        return (self.loss,)

    @property
    def group(self) -> int:
        """Rows of the batch that a loss treats together: processes and micro-batches hold whole groups."""
        return 1

    @property
    def averages(self) -> dict[str, float]:
        """Numbers that losses measure and see the moving average of: name -> decay per update.

        They are averaged over the global batch, and are part of the training state.
        """
        return {}

    @property
    def target_decay(self) -> float | None:
        """Decay per update of the moving average that the losses see as ctx.target; None for none."""
        return getattr(self.params, "target_decay", None)

    @property
    def target_warmup(self) -> bool:
        """Whether that decay is approached from 0 (`training.ema.Approach`), or held from the start."""
        return getattr(self.params, "target_warmup", False)

    def players(self, net: nn.Module) -> dict[str, nn.Module]:
        """The networks that are trained in turns of their own beside the student.

        They are built after it, under a seed of their own. Each has its settings in ``params.optimizers``.

        Args:
            net: the bare student, which already has its first weights.
        """
        return {}

    def extra(self) -> nn.Module | None:
        """A module that is trained along with the network and not part of it; None for none."""
        return None
