"""Stages as copies of a process that has loaded their modules.

Loading torch and what the stages use takes seconds of a core's time, and the miniature has a hundred stages
that work for less. A workflow that runs on one machine therefore starts one process that loads them once
(fewstep.preload); fewstep.launch asks it for a copy of itself. The copy gets arguments, environment, folder
and open files of the launcher and runs the stage from its beginning, so nothing of one stage reaches another.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType

SOCKET = "FEWSTEP_PRELOADED"
"""Environment variable: the socket of the process."""
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MESSAGE = 2**17
"""Bytes of a request, at most."""
STARTED = b"started"
PATIENCE = 120
"""Seconds that a launcher waits for a copy: the first one waits until the modules are loaded."""

_processes: list[subprocess.Popen[bytes]] = []


def start() -> dict[str, str]:
    """Start such a process, which ends when this one does.

    Returns:
        The environment variable by which stages find it; nothing where there can be no such process: the
        system has no pidfd_open, ``python`` is not found, or the folder of temporary files can have no
        socket, as its path is too long or it is on another machine.
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
        folder = Path(tempfile.mkdtemp(prefix="fewstep-"))
    except (AttributeError, OSError):
        return {}
    try:
        _processes.append(_listening(folder / "socket"))
    except OSError:
        shutil.rmtree(folder)
        return {}
    return {SOCKET: str(folder / "socket")}


def _listening(path: Path) -> subprocess.Popen[bytes]:
    """Start the process with a socket at ``path``; OSError where that is not possible."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(socket.SOMAXCONN)
        return subprocess.Popen(
            ["python", "-m", "fewstep.preload", "--listener", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,  # closed when this process ends
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the launchers, which pass it on
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def surroundings(code: list[str]) -> list[str | None]:
    """What a copy cannot change any more: it must be the same here and there.

    Args:
        code: digests of the package's sources.
    """
    # Not sys.executable: python and python3 of one environment are the same.
    return [sys.prefix, sys.version, os.environ.get("PYTHONPATH"), os.environ.get("OMP_NUM_THREADS"), *code]


def run(module: str, arguments: list[str], code: list[str]) -> None:
    """Let a copy run a stage, and end as it ends.

    Returns only where there is no such process, or none that will do.

    Args:
        code: digests of the package's sources.
    """
    request = {
        "surroundings": surroundings(code),
        "module": module,
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
    }
    content = json.dumps(request).encode()
    if SOCKET not in os.environ or len(content) > MESSAGE:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(PATIENCE)
        try:
            connection.connect(os.environ[SOCKET])
            if _owner(connection) != os.geteuid():
                return
            socket.send_fds(connection, [content], [0, 1, 2])
            if connection.recv(MESSAGE) != STARTED:
                return
        except OSError:
            return
        connection.settimeout(None)

        def pass_on(number: int, _frame: FrameType | None) -> None:
            with suppress(OSError):
                connection.send(str(number).encode())

        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, pass_on)
        answer = b""
        with suppress(OSError):
            answer = connection.recv(MESSAGE)
    if not answer:
        raise SystemExit(f"error: {module}: the process that was to tell how it ended is gone")
    status = int(answer)
    if status < 0:  # killed by a signal, and so is this process
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    raise SystemExit(status)


def _owner(connection: socket.socket) -> int:
    """Number of the user at the other end."""
    fields = struct.Struct("iII")  # process, user and group: struct ucred of unix(7)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, fields.size)
    user: int = fields.unpack(credentials)[1]
    return user
