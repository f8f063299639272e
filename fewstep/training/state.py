"""The saved state of a training: complete or absent, checked, and resumed exactly.

Snakemake deletes the declared outputs of a failed job. The state therefore lies in an undeclared folder
beside the model. It belongs to its owner (spec, teacher, latents, training code), whose digest is in the
folder's name; the state of another owner is discarded. Tensors are safetensors written by
torch.distributed.checkpoint, so that another number of processes, or another layout, can read them; all
else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ..common.files import sha256
from ..config.base import read_sealed, sealed
from ..config.specs import Continued
from ..core.wrappers import trained_state, unwrap
from .ema import Ema

STOPPED = 75
"""Exit status of a run that saved its state and wants to be started again (sysexits' EX_TEMPFAIL)."""
KEPT = 2
"""States that are kept: the newest, and the one before in case the newest is damaged later."""
FILE_BYTES = 2**30
"""Tensors that go into one file, at most; a process holds a file in memory while it writes it."""
RECORD = "state.json"
FINISHED = "finished-state"
"""Folder beside a model with the last state of its training, where that is kept."""
CURVE = "train.jsonl"


@dataclass
class Progress:
    """Counters and measurements that are part of the state."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: list[int] = field(default_factory=list)
    """Of the student, and of each player beside it."""
    guidance_eta: float | None = None
    self_test: dict[str, Any] | None = None
    flops_per_step: float | None = None
    curve_bytes: int = 0
    """Size of the curve's file."""


class TrainingState:
    """Saves and restores modules, optimizer, averages, loss scaler and progress of one training.

    Args:
        beside: folder of the model that is trained; no other training may use it.
        owner: what the state belongs to, each by a digest.
        progress: restored in place.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        beside: Path,
        owner: Mapping[str, str | list[str] | None],
        progress: Progress,
    ) -> None:
        self._accelerator = accelerator
        self._progress = progress
        self.owner = owner
        text = json.dumps(owner, sort_keys=True)
        self.folder = beside / f"state-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def curve(self) -> Path:
        """Lines of the curve so far."""
        return self.folder / CURVE

    def attach(
        self,
        modules: dict[str, nn.Module],
        optimizers: dict[str, torch.optim.Optimizer],
        averages: dict[str, Ema],
    ) -> None:
        """Name what is to be saved and restored; once, before either.

        Args:
            optimizers: of each module.
        """
        self._modules, self._optimizers, self._averages = modules, optimizers, averages

    def saved(self) -> list[Path]:
        """Complete states, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix != ".partial")

    def newest(self) -> Path | None:
        """The newest undamaged state, the same on all processes; what cannot be used is removed."""
        step = -1
        if self._accelerator.is_main_process:
            self._discard_others()
            for path in reversed(self.saved()):
                problem = damage(path)
                if problem is None:
                    step = int(path.name.removeprefix("step-"))
                    break
                print(f"{problem}: this saved state is damaged, the one before it is used if there is one")
                shutil.rmtree(path)
        found = torch.tensor(step, device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            torch.distributed.broadcast(found, src=0)
        return None if found < 0 else self._path(int(found))

    def take_over(self, other: Path, continued: Continued) -> None:
        """Start from the last state of another training, and from its curve.

        Args:
            other: its state, from `finished_state`.

        Raises:
            ValueError: it is damaged, or of another spec, teacher or data than asked for.
        """
        if not self._accelerator.is_main_process:
            return
        again = f"train {continued.run} again"
        if (problem := damage(other)) is not None:
            raise ValueError(f"{problem}: the state of the finished training is damaged; {again}")
        owner = read_sealed(other / RECORD, "the record of a saved state")["owner"]
        wanted = {**self.owner, "spec": continued.spec}
        for key in ("spec", "teacher", "latents", "captions"):
            if owner.get(key) != wanted.get(key):
                raise ValueError(f"{other}: is of a training with another {key} than is asked for; {again}")
        if codes_behind(other) != [self.owner["training code"]]:
            print(f"{other}: of a training with other code than now; what follows from it will be stale")
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(other.parent / CURVE, self.curve)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def _discard_others(self) -> None:
        for folder in sorted(self.folder.parent.glob("state-*")):
            if folder == self.folder or not folder.is_dir():
                continue
            records = sorted(folder.glob(f"step-*/{RECORD}"))
            try:
                owner = json.loads(records[-1].read_text(encoding="utf-8"))["owner"]
                changed = " and ".join(
                    f"another {key}" for key in self.owner if owner[key] != self.owner[key]
                )
            except (IndexError, KeyError, TypeError, ValueError):
                changed = "an unknown training"
            print(f"{folder}: saved state of {changed} discarded")
            shutil.rmtree(folder)

    def save(self) -> None:
        """Write the state of the step just finished, check it, and remove all but the newest.

        Raises:
            OSError: it could not be written; states saved before remain.
        """
        main, wait = self._accelerator.is_main_process, self._accelerator.wait_for_everyone
        done = self._path(self._progress.step)
        partial = done.with_suffix(".partial")
        if main:
            for leftover in self.folder.glob("*.partial"):
                shutil.rmtree(leftover)
            partial.mkdir(parents=True)
        wait()
        tensors = self._tensors()
        writer = HuggingFaceStorageWriter(
            str(partial), fqn_to_index_mapping=_files_of(tensors), save_distributed=True
        )
        with _one_line_errors(partial):
            dcp.save(tensors, storage_writer=writer)
        wait()
        if main:
            self._write_record(partial)
            if done.exists():
                shutil.rmtree(done)
            partial.rename(done)
            _sync(self.folder)
            for path in self.saved()[:-KEPT]:
                shutil.rmtree(path)
        wait()

    def _write_record(self, folder: Path) -> None:
        """The record comes last: it holds the checksums of what was read back from the disk."""
        scaler = self._accelerator.scaler
        self._progress.curve_bytes = self.curve.stat().st_size if self.curve.exists() else 0
        record = {
            "owner": self.owner,
            "progress": asdict(self._progress),
            "averages": {name: int(average.updates) for name, average in self._averages.items()},
            "scaler": scaler.state_dict() if scaler is not None else None,
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
            "curve": _start_sha256(self.curve, self._progress.curve_bytes),
        }
        with (folder / RECORD).open("w", encoding="utf-8") as stream:
            stream.write(sealed(record))
            stream.flush()
            os.fsync(stream.fileno())
        _sync(folder)
        problem = damage(folder)
        if problem is not None:
            raise OSError(f"{problem}: the state was not written correctly")

    def restore(self, path: Path) -> None:
        """Load a state in place, whatever number of processes and layout it was saved with."""
        record = read_sealed(path / RECORD, "the record of a saved state")
        reader = HuggingFaceStorageReader(str(path))
        self._allocate_moments(reader.read_metadata().state_dict_metadata.keys())
        with _one_line_errors(path):
            dcp.load(self._tensors(), storage_reader=reader)
        for name, average in self._averages.items():
            average.updates.fill_(record["averages"][name])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(record["scaler"])
        for each in fields(self._progress):
            setattr(self._progress, each.name, record["progress"][each.name])

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by unique names, in the memory that training uses."""
        found: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            found |= {f"{name}.{key}": value for key, value in trained_state(module).items()}
        for name, average in self._averages.items():
            found |= {f"{name}.{key}": value for key, value in average.tensors().items()}
        for name, weight, optimizer in self._weights():
            moments = optimizer.state.get(weight, {})
            found |= {f"optimizer.{kind}.{name}": value for kind, value in moments.items()}
        return found

    def _weights(self) -> Iterator[tuple[str, Tensor, torch.optim.Optimizer]]:
        for name, module in self._modules.items():
            for key, weight in unwrap(module).named_parameters():
                yield f"{name}.{key}", weight, self._optimizers[name]

    def _allocate_moments(self, saved: Collection[str]) -> None:
        """Those moments that were saved, as the optimizer makes them in its first step.

        torch's set_optimizer_state_dict takes a step with zero gradients for this. A state that was saved
        before the first finite update has no moments, and would then differ from an uninterrupted training.
        """
        kinds = {name.split(".")[1] for name in saved if name.startswith("optimizer.")}
        for name, weight, optimizer in self._weights():
            for kind in kinds:
                if f"optimizer.{kind}.{name}" in saved:
                    moment = torch.zeros_like(weight.detach())
                    if kind == "step":
                        moment = torch.zeros((), device=weight.device)
                    optimizer.state[weight][kind] = moment

    @property
    def _finished(self) -> Path:
        return self.folder.with_name(FINISHED)

    def forget_finished(self) -> None:
        """Remove the state that an earlier training has kept."""
        shutil.rmtree(self._finished, ignore_errors=True)

    def end(self, keep: bool) -> None:
        """Free the disk once the model is written: of all states, or of all but the last."""
        if not self._accelerator.is_main_process:
            return
        if keep:
            for path in self.saved()[:-1]:
                shutil.rmtree(path)
            self.forget_finished()
            self.folder.rename(self._finished)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def finished_state(model: Path, run: str) -> Path:
    """The last state of the training of ``model``, which is called ``run``.

    Raises:
        ValueError: it was not kept.
    """
    folder = model.with_name(FINISHED)
    found = sorted(folder.glob("step-*"))
    if not found:
        raise ValueError(
            f"{folder}: no state of the finished training {run} was kept; train it again (-R {model}): its "
            "state is kept where another run continues it, or with --keep-state"
        )
    return found[-1]


def codes_behind(state: Path) -> list[str]:
    """Digests of the training code behind a state, sorted: of its training and of all that it goes on with.

    Raises:
        ValueError: its record is damaged.
    """
    owner = read_sealed(state / RECORD, "the record of a saved state")["owner"]
    return sorted({owner["training code"], *owner.get("continued codes", [])})


def damage(folder: Path) -> str | None:
    """The file of a saved state that is not what was written, and why; None for a good state."""
    record = folder / RECORD
    try:
        content = read_sealed(record, "the record of a saved state")
        files, size = content["files"], content["progress"]["curve_bytes"]
        if _start_sha256(curve := folder.parent / CURVE, size) != content["curve"]:
            return f"{curve}: the first {size} bytes: checksum differs"
    except (ValueError, KeyError, TypeError) as error:
        return str(error) if str(record) in str(error) else f"{record}: {error}"
    for name, expected in files.items():
        path = folder / name
        try:
            if sha256(path) != expected:
                return f"{path}: checksum differs"
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            return f"{path}: {error}"
    return None


def _start_sha256(path: Path, size: int) -> str:
    """SHA-256 of the first ``size`` bytes; the file need not exist."""
    content = path.read_bytes()[:size] if path.exists() else b""
    return hashlib.sha256(content).hexdigest()


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of the file, from 1, that each tensor goes into."""
    number, size, found = 1, 0, {}
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if size and size + bytes_ > FILE_BYTES:
            number, size = number + 1, 0
        size += bytes_
        found[name] = number
    return found


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Errors of torch.distributed.checkpoint, which are BaseExceptions with tracebacks, as an OSError."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.distributed is disabled.*")
            yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"{path}: process {rank}: {type(cause).__name__}: {cause}") from None


class Curve:
    """train.jsonl, one line per logged update; a resumed run cuts what came after its state."""

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stream = path.open("a", encoding="utf-8")
        self._stream.truncate(size)

    def write(self, **values: float) -> None:
        self._stream.write(json.dumps(values) + "\n")

    def flush(self) -> None:
        self._stream.flush()


class StopRequest:
    """Set by SIGTERM and SIGUSR1 (a time limit or preemption is near) and by a first Ctrl-C."""

    def __init__(self, process: int, processes: int) -> None:
        self._name = f"process {process} of {processes}"
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"{self._name}: asked to stop by {signal.Signals(number).name}\n".encode())
        self.asked = True
        if number == signal.SIGINT:  # who presses it twice does not want to wait
            signal.signal(number, signal.default_int_handler)
