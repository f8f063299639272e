"""What is most wanted of a GPU, measured within minutes; for whoever has one for ten.

    python -m fewstep.bench gpu [--minutes 8] [--out gpu.csv]

The list of `parts` is worked off in its order, each part in a process of its own and with a time limit, so
that none takes the time of the next. What a part has measured is in the CSV as soon as it ends, or is ended.
At the end stands the table as Markdown. ``--tiny`` does the same with tiny networks, on any machine, to try
the command itself.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ..common.csv_files import read_csv
from ..common.files import write_text
from . import as_csv, partial_of, profile_of
from .meters import DEVICE, GROUPS, machine

ROOT = Path(__file__).parents[2]
MODULES = [
    "fewstep.train",
    "fewstep.sample",
    "fewstep.encode",
    "fewstep.bench.__main__",
    "diffusers",
    "accelerate",
]
"""All that the parts will import: whatever is missing is to be known in the first minute."""
LEAST = 15
"""Seconds without which no part is started."""
NUMBERS = ("images/s", "ms", "MiB", "MFU", *GROUPS, "elementwise", "idle")
SHOWN = ("part", "work", "case", "tokens", "rule", "batch", "blocks", *NUMBERS, "note")
"""Columns of the Markdown table; of a profile, milliseconds."""


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    limit: float
    """Seconds that it may take."""
    words: list[str]
    """After ``python``."""
    needed: bool = False
    """Whether nothing else is tried where it fails."""
    measures: bool = False
    """Whether it writes the file that ``--out`` names."""


def parts(tiny: bool) -> list[Part]:
    """In the order in which they are wanted."""
    large, compiler = ([], "eager") if tiny else (["--large"], "inductor")
    few, more, most = ("2", "2", ["4", "8"]) if tiny else ("16", "64", ["32", "64", "128"])

    def bench(name: str, limit: float, *words: str) -> Part:
        return Part(name, limit, ["-m", "fewstep.bench", *words], measures=True)

    def steps(name: str, limit: float, network: str, *words: str) -> Part:
        size = ("--network", "tiny" if tiny else network, "--compiler", compiler)
        return bench(name, limit, "train-step", *size, "--formulations", "fused", "--repeats", "3", *words)

    fast, slow = ["--blocks", "compiled", "captured-compiled"], ["--blocks", "plain", "captured"]
    tests = sorted(str(path) for path in ROOT.glob("tests/*/test_*_gpu.py"))
    facm, decm, both = (["--methods", *names] for names in (["facm"], ["decm"], ["facm", "decm"]))
    return [
        Part("imports", 60, ["-c", f"import {', '.join(MODULES)}"], needed=True),
        Part("tests", 120, ["-m", "pytest", "-o", "addopts=", "-v", "-rs", "-m", "gpu", *tests]),
        steps("facm compiled", 110, "xl1", *facm, *fast, "--batch", few, "--profile"),
        steps("facm plain", 60, "xl1", *facm, *slow, "--batch", few),
        steps("digits", 45, "digits", *both, *slow, "--batch", "128"),
        steps("decm compiled", 110, "xl1", *decm, *fast, "--batch", few),
        steps("larger batches", 100, "xl1", *facm, "--blocks", "compiled", "--batch", *most),
        steps("b1", 60, "b1", *both, *slow, "--batch", more),
        bench("attention", 60, "attention", *large, "--repeats", "3"),
        bench("sample", 90, "sample", *large, "--repeats", "3", "--batch", more),
        bench("load", 30, "load", *large, "--repeats", "3"),
    ]


def add_options(options: argparse.ArgumentParser) -> None:
    options.add_argument("--minutes", type=float, default=8, help="for all of it (%(default)s)")
    options.add_argument("--out", type=Path, default=Path("gpu.csv"), help="CSV to write (%(default)s)")
    options.add_argument("--tiny", action="store_true", help="tiny networks, without a GPU too")


def run_all(minutes: float, out: Path, tiny: bool) -> None:
    """Work off the list, write the CSV as it grows, and print the table.

    Raises:
        ValueError: there is no GPU, or what is needed cannot be imported.
    """
    if DEVICE.type != "cuda" and not tiny:
        raise ValueError("no GPU here, so nothing to measure; --tiny tries the command")
    end = time.monotonic() + 60 * minutes
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(parts(tiny)):
            left = end - time.monotonic()
            if left < LEAST:
                rows.append({"part": part.name, "note": "not started: no time left"})
                continue
            print(f"[{60 * minutes - left:.0f} s] {part.name}", flush=True)
            found = Path(folder) / f"{number}.csv"
            note = _run(part, min(part.limit, left), found)
            files = [file for file in (found, partial_of(found), profile_of(found)) if file.exists()]
            rows += [{"part": part.name, **row} for file in files for row in read_csv(file)[1]]
            if note or not files:
                rows.append({"part": part.name, "note": note or "done"})
            _write(out, rows)
            if part.needed and note:
                raise ValueError(f"{part.name}: {note}")
    _write(out, rows)
    print(_markdown(rows))


def _run(part: Part, limit: float, out: Path) -> str:
    """Run a part; what went wrong, or "" if nothing did."""
    words = [sys.executable, *part.words, *(["--out", str(out)] if part.measures else [])]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        words,
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = False
    try:
        text, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
    finally:  # also on Ctrl-C and SIGTERM, which do not reach its session
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    if late:
        text, _ = process.communicate()
    # The profiler of some releases tells of itself.
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("USDT:")]
    print("\n".join(lines[-40:]), flush=True)
    if late:
        return f"ended at its limit of {limit:.0f} s"
    return f"failed: {lines[-1][:100] if lines else process.returncode}" if process.returncode else ""


def _write(out: Path, rows: list[dict[str, str]]) -> None:
    """All rows with the columns of all."""
    columns = dict.fromkeys(name for row in rows for name in row)
    write_text(out, as_csv([dict.fromkeys(columns, "") | row for row in rows]))


def _markdown(rows: list[dict[str, str]]) -> str:
    """The table for readers, under a line that says where it was measured."""
    versions = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    if importlib.util.find_spec("triton"):
        versions.append(f"triton {importlib.metadata.version('triton')}")
    today = datetime.datetime.now(datetime.UTC).date()
    shown = [name for name in SHOWN if any(row.get(name) for row in rows)]
    table = [shown, *([row.get(name, "") for name in shown] for row in rows)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    lines.insert(1, "|" + " --- |" * len(shown))
    where = machine()["device"]
    return "\n".join([f"Measured on {today}: {where}, {', '.join(versions)}.", "", *lines])
