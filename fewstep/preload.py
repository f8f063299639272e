"""Load the stages' modules once, and run stages as copies of this process.

    python -m fewstep.preload --listener N

N is the descriptor of a listening socket that fewstep.common.preloaded passes on. The process ends when its
standard input does and the last stage has ended. It runs no stage and computes nothing itself, so a copy
starts as a fresh Python does, with the modules at hand.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from .backbones import NETWORKS
from .common import provenance
from .common.cli import plain_parser
from .common.preloaded import MESSAGE, STARTED, surroundings
from .common.provenance import FEATURES, PROMPTS

STAGES = {"fewstep.sample", "fewstep.reference", "fewstep.score"}
"""Not the trainings: they work for longer, and Snakemake measures them as processes of its own."""
MODULES = ("generation", "reference_statistics", "scoring", "fidelity")
"""Of the room evaluation: those that a stage imports, also only where it uses them."""
OF_CAPTIONS = ("sd3", "kl-autoencoder", "clip")
"""Networks that load diffusers and transformers, which takes seconds: those of stages with captions."""
MODULES_OF_CAPTIONS = ("evaluation.prompt_scoring", "data.text_store", "data.text_encoders")
OPTIONS_OF_CAPTIONS = ("--text", "--scorers")
"""Such a stage gives files to one of these options."""
PATIENCE = 5
"""Seconds in which a launcher that has connected must send its request."""
PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that a process gets when its parent has died."""


@dataclass
class Copy:
    """A stage that runs, and the launcher that waits for it."""

    process: int
    connection: socket.socket
    ended: int
    """Descriptor that can be read once the process has ended."""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = plain_parser(__doc__)
    arguments.add_argument("--listener", type=int, required=True, help="descriptor of a listening socket")
    given = arguments.parse_args(argv)
    request = Server(socket.socket(fileno=given.listener)).serve()
    if request is not None:
        run_stage(request["module"], request["arguments"])


def run_stage(module: str, arguments: list[str]) -> NoReturn:
    """Run a stage and end this process, with the exit status of ``python -m``.

    The interpreter is not taken down: that writes on every module, and so copies all that is shared.
    """
    sys.argv = [module, *arguments]
    status = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status)


def has_captions(arguments: list[str]) -> bool:
    """Whether a stage's words give files to one of the options of captions; options may stand alone."""
    pairs = pairwise(arguments)
    return any(word in OPTIONS_OF_CAPTIONS and not after.startswith("--") for word, after in pairs)


def _load_networks(kinds: Iterable[str], protocol: str) -> None:
    """Load networks, and remember digests of sampling from them and scoring by a kind of protocol."""
    for kind in kinds:
        import_module(f".backbones.{NETWORKS[kind][0]}", __package__)
        provenance.sampling_digest(kind)
        provenance.score_digest(kind, protocol)


def end_with(parent: int) -> None:
    """Get SIGTERM when the parent dies, also if it is dead by now: nothing else could stop this process."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class Server:
    """Answers launchers.

    Args:
        listener: to which launchers connect; its path is in a folder of its own.
    """

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._folder = Path(listener.getsockname()).parent
        self._surroundings: list[str | None] | None = None
        self._knows_captions = False
        self._copies: list[Copy] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(sys.stdin, selectors.EVENT_READ)

    def serve(self) -> dict[str, Any] | None:
        """Until standard input ends. Returns in each copy too: there the request, at the end None."""
        asked = True
        while asked or self._copies:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    asked = False
                    self._selector.unregister(sys.stdin)
                    self._selector.unregister(self._listener)
                    self._listener.close()
                    shutil.rmtree(self._folder, ignore_errors=True)
                elif key.fileobj is self._listener:
                    request = self._answer() if asked else None
                    if request is not None:
                        return request
                elif key.fd == key.data.ended:
                    self._finish(key.data)
                elif key.data in self._copies:
                    self._pass_on(key.data)
        return None

    def _load(self) -> list[str | None]:
        """Load the modules, once; returns what a launcher has to have in common with this process."""
        if self._surroundings is None:
            import torch

            self._surroundings = surroundings(provenance.sources())
            if torch.cuda.device_count():  # CUDA does not go through a fork
                self._surroundings = []
                return []
            for name in MODULES:
                import_module(f".evaluation.{name}", __package__)
            _load_networks(set(NETWORKS) - set(OF_CAPTIONS), FEATURES)
            gc.freeze()  # a collection in a copy would write on, and so copy, all of this
        return self._surroundings

    def _load_captions(self) -> None:
        """Load what stages with captions need beside, once."""
        if not self._knows_captions:
            self._knows_captions = True
            with suppress(ImportError):  # of packages that are not installed; the stage says so
                for name in MODULES_OF_CAPTIONS:
                    import_module(f".{name}", __package__)
                _load_networks(OF_CAPTIONS, PROMPTS)
            gc.freeze()

    def _answer(self) -> dict[str, Any] | None:
        """Make a copy, in which the request is returned, if this process will do."""
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the launcher is gone, or too many files are open
            return None
        connection.settimeout(PATIENCE)
        content = b""
        files: list[int] = []
        with suppress(OSError):
            content, files, _, _ = socket.recv_fds(connection, MESSAGE, 3)
        request: dict[str, Any] = json.loads(content) if content else {}
        suits = request.get("module") in STAGES and request["surroundings"] == self._load()
        if suits and has_captions(request["arguments"]):
            self._load_captions()
        server, process = os.getpid(), None
        if suits and len(files) == 3:
            with suppress(OSError):  # too many processes, or no memory
                process = os.fork()
        if process == 0:
            connection.detach()  # stays open for as long as the copy lives
            self._become(request, files)
            end_with(server)
            return request
        for file in files:
            os.close(file)
        if process is None:
            connection.close()
            return None
        copy = Copy(process, connection, os.pidfd_open(process))
        self._copies.append(copy)
        for readable in (copy.connection, copy.ended):
            self._selector.register(readable, selectors.EVENT_READ, copy)
        with suppress(OSError):  # the launcher is gone; the connection says so too
            connection.send(STARTED)
        return None

    def _become(self, request: dict[str, Any], files: list[int]) -> None:
        """In a copy: leave the server behind, and take the launcher's place."""
        self._selector.close()
        self._listener.close()
        for copy in self._copies:
            copy.connection.close()
            os.close(copy.ended)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        tempfile.tempdir = None  # the environment names it

    def _pass_on(self, copy: Copy) -> None:
        """Give the stage the signal that its launcher got. A launcher that was killed takes it along."""
        with suppress(ConnectionResetError):
            if content := copy.connection.recv(MESSAGE):
                os.kill(copy.process, int(content))
                return
        self._selector.unregister(copy.connection)
        os.kill(copy.process, signal.SIGKILL)

    def _finish(self, copy: Copy) -> None:
        """Tell the launcher how the stage ended."""
        _, status = os.waitpid(copy.process, 0)
        with suppress(OSError):
            copy.connection.send(str(os.waitstatus_to_exitcode(status)).encode())
        with suppress(KeyError):
            self._selector.unregister(copy.connection)
        self._selector.unregister(copy.ended)
        copy.connection.close()
        os.close(copy.ended)
        self._copies.remove(copy)


if __name__ == "__main__":
    main()
