"""Rolling training state: saved whole or not at all, resumed exactly, out of Snakemake's sight.

Snakemake deletes the declared outputs of a failed job. The state therefore lives in an undeclared
folder beside the model, tagged with the spec's digest, so that a changed run never resumes from it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from .core.ema import Ema
from .core.wrappers import held
from .wrap import load_local_state, local_state

STOPPED = 75
"""Exit status of a run that saved its state and wants to be started again (sysexits' EX_TEMPFAIL)."""


class Progress:
    """Counters that are part of the state."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0
        self.in_a_row = 0
        self.eta: float | None = None
        self.self_test: dict[str, Any] | None = None
        self.flops: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class State:
    """Saves and restores an Accelerator with its models, optimizer, generators, averages and counters.

    Of sharded weights each process saves its own part, and the same number of processes reads them.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, progress: Progress, sharded: bool):
        self._accelerator = accelerator
        self._progress = progress
        self._sharded = sharded
        self.folder = folder

    def hold(self, modules: list[nn.Module], optimizer: AcceleratedOptimizer, averages: list[Ema]) -> None:
        """Name what is to be saved and restored; once, before either."""
        self._modules, self._optimizer, self._averages = modules, optimizer.optimizer, averages
        if not self._sharded:
            self._accelerator.register_for_checkpointing(*averages, self._progress)

    def saved(self) -> list[Path]:
        """Complete states, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")

    def save(self) -> None:
        """Write the state of the step just finished; the one before is removed afterwards."""
        done = self.folder / f"step-{self._progress.step:09d}"
        partial = done.with_suffix(".partial")
        older = self.saved()
        if self._accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self._accelerator.wait_for_everyone()
        if self._sharded:
            torch.save(self._part(), partial / self._name())
        else:
            self._accelerator.save_state(str(partial))
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            if done.exists():
                shutil.rmtree(partial)
            else:
                partial.rename(done)
            for path in older:
                if path != done:
                    shutil.rmtree(path)
        self._accelerator.wait_for_everyone()

    def restore(self) -> bool:
        """Load the newest complete state; False if there is none.

        Raises:
            ValueError: it was saved sharded otherwise than this training is.
        """
        saved = self.saved()
        if not saved:
            return False
        parts = sorted(path.name for path in saved[-1].glob("part-*-of-*.pt"))
        if (parts and self._name() not in parts) or (self._sharded and not parts):
            made = f"--shard fsdp2 and {len(parts)} processes" if parts else "--shard none"
            raise ValueError(f"{saved[-1]}: was saved with {made}; go on with these, or remove it")
        if self._sharded:
            self._take(torch.load(saved[-1] / self._name(), map_location="cpu", weights_only=True))
        else:
            self._accelerator.load_state(str(saved[-1]))
        return True

    def _name(self) -> str:
        """File of this process's part."""
        if not self._sharded:
            return ""
        return f"part-{self._accelerator.process_index}-of-{self._accelerator.num_processes}.pt"

    def _part(self) -> dict[str, Any]:
        averages = [average.state_dict() for average in self._averages]
        for average in averages:
            average["tensors"] = {name: held(tensor) for name, tensor in average["tensors"].items()}
        own = local_state(self._modules, self._optimizer)
        return {**own, "averages": averages, "progress": self._progress.state_dict()}

    def _take(self, part: dict[str, Any]) -> None:
        load_local_state(self._modules, self._optimizer, part)
        for average, state in zip(self._averages, part["averages"], strict=True):
            average.load_state_dict(state)
        self._progress.load_state_dict(part["progress"])

    def remove(self) -> None:
        """Free the disk once the model is written."""
        if self._accelerator.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)


class Curve:
    """train.jsonl, one line per logged update; a resumed run cuts what came after its state."""

    def __init__(self, path: Path, step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.path = path
        self._stream = path.open("a", encoding="utf-8")

    def write(self, **values: float) -> None:
        self._stream.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        self._stream.flush()


class StopRequest:
    """Set by SIGTERM and SIGUSR1 (a time limit or preemption is near) and by a first Ctrl-C."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if not self._asked:
            rank, count = self._accelerator.process_index, self._accelerator.num_processes
            # Not print: the signal may have come in the middle of one.
            os.write(
                2, f"process {rank} of {count}: asked to stop by {signal.Signals(number).name}\n".encode()
            )
        self._asked = True
        if number == signal.SIGINT:  # who presses it twice does not want to wait
            signal.signal(number, signal.default_int_handler)

    def agreed(self, step: int) -> bool:
        """Whether any process was asked to stop; the answer is the same on all of them.

        With several processes they confer every tenth step, so that a step costs no extra exchange.
        """
        if self._accelerator.num_processes == 1:
            return self._asked
        if step % 10:
            return False
        asked = torch.tensor(float(self._asked), device=self._accelerator.device)
        return bool(self._accelerator.reduce(asked, reduction="sum") > 0)
