"""Stages in processes of their own, so that they can die, stop, or be two.

Children are forked from a server that has imported the stages but never run one: a child starts in
milliseconds, and no thread of a training is lost in the fork.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_pipeline import Call

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "accelerate", "tensorboard", "webdataset", "pyarrow.parquet"]
    + [f"fewstep.{stage}" for stage in ("encode", "train", "sample", "score")]
)
LIMIT = 120


def die_at_rename(name: str) -> None:
    """The process is killed when everything is written and only the rename to ``name`` is left."""
    for function in ("replace", "rename"):
        original = getattr(os, function)

        def dying(source: Any, target: Any, *rest: Any, _original: Any = original, **more: Any) -> None:
            if Path(target).name == name:
                os.kill(os.getpid(), signal.SIGKILL)
            _original(source, target, *rest, **more)

        setattr(os, function, dying)


def signal_at_step(step: int, number: int) -> None:
    """The training process gets one signal, in the middle of a step."""
    from fewstep.training.trainer import Trainer

    original = Trainer._update
    sent = []

    def signalled(self: Trainer, *given: Any) -> Any:
        if self.progress.step == step and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *given)

    Trainer._update = signalled


def disk_full_at_step(step: int) -> None:
    """From the middle of this step on, the training process can write no file of more than 100 kB."""
    from fewstep.training.trainer import Trainer

    original = Trainer._update

    def limited(self: Trainer, *given: Any) -> Any:
        if self.progress.step == step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return original(self, *given)

    Trainer._update = limited


def _child(call: Call, log: Path, environment: dict[str, str], fault: Callable | None, how: dict) -> None:
    os.environ.update(environment)
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if fault:
        fault(**how)
    from fewstep.common.cli import run

    run(lambda _: importlib.import_module(f"fewstep.{call.stage}").main(call.arguments))


def start(call: Call, log: Path, environment: dict[str, str] | None = None, fault=None, **how) -> Any:
    process = _CONTEXT.Process(target=_child, args=(call, log, environment or {}, fault, how))
    process.start()
    return process


def finish(process: Any) -> int:
    """Exit status; negative for a signal."""
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"a child still ran after {LIMIT} s")
    return process.exitcode


def child(call: Call, log: Path, fault=None, **how) -> int:
    """Run a stage in another process; ``fault`` is one of the functions above."""
    return finish(start(call, log, fault=fault, **how))


def _tell(limit: int, sender: Any, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        function(*arguments)
    except BaseException as error:
        sender.send(f"{type(error).__name__}: {error}")
    else:
        sender.send("")


def in_little_memory(function: Callable[..., None], *arguments: Any, limit: int = 64 << 20) -> str:
    """Call a function in a process that may take ``limit`` more bytes; returns its error, or ""."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_tell, args=(limit, sender, function, arguments))
    process.start()
    sender.close()
    try:
        return str(receiver.recv())
    finally:
        finish(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _join(rank: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    function(rank, *arguments)
    # What is left of networks may hold threads of the group: it goes first, and in both processes together.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def in_two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` on the CPU in two processes that share a process group."""
    import torch.multiprocessing

    torch.multiprocessing.spawn(_join, (free_port(), function, arguments), nprocs=2)


def ranks(call: Call, folder: Path, count: int = 2, fault=None, **how) -> list[int]:
    """Run a stage as ``count`` processes, with the environment that torchrun gives them."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    processes = [
        start(
            call,
            folder / f"rank{rank}.log",
            {**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)},
            fault,
            **how,
        )
        for rank in range(count)
    ]
    return [finish(process) for process in processes]
