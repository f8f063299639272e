"""A real Slurm cluster of two nodes with fake GPUs on this machine."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = str(Path(__file__).parent / "cluster.sh")
NEEDED = ["slurmctld", "slurmd", "munged", "srun"]
FIGURES: dict[str, list[str]] = {}
"""What the tests measured on their way, for the summary after them."""


def note(what: str, figure: str) -> None:
    """Add a figure to the summary."""
    FIGURES.setdefault(what, []).append(figure)


def why_not() -> str:
    """What is missing for a cluster here, "" if nothing is."""
    missing = [name for name in NEEDED if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    if not missing and os.geteuid() == 0:
        return ""
    why = f"not installed: {', '.join(missing)}" if missing else "not root"
    return f"the test cluster needs root and the Debian packages slurm-wlm, munge ({why})"


class Cluster:
    """Nodes n1 and n2, in a folder of their own; several clusters do not meet."""

    def __init__(self) -> None:
        # Below /tmp: the path of a socket is at most 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
        # A client's variables, without those of a job around these tests.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = {**kept, "SLURM_CONF": f"{self.folder}/slurm.conf", "PATH": path}

    def start(self) -> None:
        # Below the ephemeral ports.
        port = {"BASE_PORT": str(random.randrange(10000, 19000, 100))}
        begun = time.monotonic()
        words = [SCRIPT, "start", self.folder]
        subprocess.run(words, check=True, timeout=120, env={**os.environ, **port}, stdout=subprocess.DEVNULL)
        note("start of a cluster", f"{time.monotonic() - begun:.1f} s")

    def stop(self) -> None:
        subprocess.run([SCRIPT, "stop", self.folder], check=True, timeout=120)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *words: str, cwd: Path | None = None) -> str:
        """Output of a command on the login node."""
        done = subprocess.run(words, env=self.env, cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout

    def states(self, job: str) -> str:
        """State of a job, finished ones too."""
        return self.ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()

    def crash(self, node: str) -> None:
        """As a power cut: the node's daemon and all that it runs die at once, and Slurm learns of it."""
        jobs = self.ask("squeue", "-h", "-w", node, "-o", "%A").split()
        daemon = int((self.folder / f"slurmd-{node}.pid").read_text())
        steps = {f"slurmstepd: [{job}.".encode() for job in jobs}
        dying = [daemon]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                title = (process / "cmdline").read_bytes()
                words = (process / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = any(word.startswith((b"PATH=%b/" % bytes(self.folder),)) for word in words)
            ours |= f"SLURM_CONF={self.folder}/slurm.conf".encode() in words
            here = f"SLURMD_NODENAME={node}".encode() in words or title.startswith(tuple(steps))
            if ours and here:
                dying.append(int(process.name))
        # None may see another one end, and report it.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in dying:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def repair(self, node: str) -> None:
        self.ask(SCRIPT, "node", str(self.folder), node)
