"""Rolling training state: saved whole or not at all, resumed exactly, out of Snakemake's sight.

Snakemake deletes the declared outputs of a failed job. The state therefore lives in an undeclared
folder beside the model, tagged with the spec's digest, so that a changed run never resumes from it.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from .core.ema import Ema

STOPPED = 75
"""Exit status of a run that saved its state and wants to be started again (sysexits' EX_TEMPFAIL)."""


class Progress:
    """Counters that are part of the state."""

    def __init__(self) -> None:
        self.step = 0
        self.skipped = 0
        self.in_a_row = 0
        self.eta: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class State:
    """Saves and restores an Accelerator with its models, optimizer, generators, EMA and counters."""

    def __init__(self, accelerator: Accelerator, folder: Path, ema: Ema, progress: Progress):
        self._accelerator = accelerator
        self._progress = progress
        self.folder = folder
        accelerator.register_for_checkpointing(ema, progress)

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
        """Load the newest complete state; False if there is none."""
        saved = self.saved()
        if not saved:
            return False
        self._accelerator.load_state(str(saved[-1]))
        return True

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
