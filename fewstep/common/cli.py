"""What the command line of every stage shares: its parser, and how a refusal is told."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from .files import write_text

REFUSAL = "FEWSTEP_REFUSAL"
"""Environment variable: JSON of the file in which fewstep.launch finds a refusal, and what it belongs to."""


def plain_parser(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser whose help names the command as it is typed, and has the first line of ``doc``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    return argparse.ArgumentParser(prog=name, description=(doc or "").strip().partition("\n")[0] or None)


def parser(doc: str | None, spec: bool = True) -> argparse.ArgumentParser:
    """The same with ``--spec`` and ``--out``."""
    result = plain_parser(doc)
    result.add_argument("--spec", type=Path, required=spec, help="what to do, as JSON")
    result.add_argument("--out", type=Path, required=True, help="file to write")
    return result


def add_compiler(arguments: argparse.ArgumentParser, option: str, doc: str) -> None:
    """Add an option that names a backend of torch.compile: inductor if it stands alone, by default none."""
    arguments.add_argument(option, nargs="?", const="inductor", default="", metavar="BACKEND", help=doc)


def add_sampling(arguments: argparse.ArgumentParser) -> None:
    """Add the option of the stages that make a model file."""
    arguments.add_argument("--sampling", type=Path, nargs="?", help="how it is sampled from, for the card")


def metrics_parser(doc: str | None) -> argparse.ArgumentParser:
    """The parser of a stage that turns metrics into a table, for machines and for readers."""
    result = parser(doc)
    result.add_argument("--metrics", type=Path, nargs="*", default=[], help="metrics files, any subset")
    result.add_argument("--markdown", type=Path, help="the same table for readers")
    return result


def run(main: Callable[[list[str] | None], None]) -> None:
    """Call ``main`` as a program: bad input (ConfigError, ValueError), a training that diverged
    (FloatingPointError) and files that cannot be read or written (OSError) are a message and exit status 1.

    Anything else is a mistake in the program and keeps its traceback. SIGTERM ends the program with status
    143 and lets it clean up; a training saves its state instead.
    """
    signal.signal(signal.SIGTERM, _end)
    kept, key = json.loads(os.environ.get(REFUSAL, "[null, null]"))
    gc.freeze()  # a collection, and several come as Python ends, would take long to pass over all modules
    try:
        main(None)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        if kept and not _because_of_a_file(error):
            write_text(kept, json.dumps({"key": key, "message": str(error)}))
        raise SystemExit(1) from None
    if kept:
        Path(kept).unlink(missing_ok=True)


def _because_of_a_file(error: BaseException | None) -> bool:
    """Whether an OSError is behind the error; the next attempt may find the file or disk in order."""
    return error is not None and (isinstance(error, OSError) or _because_of_a_file(error.__context__))


def _end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # nothing is to interrupt the cleaning up
    raise SystemExit(128 + number)


def first_few(names: Iterable[str], most: int = 4) -> str:
    """The first names of a list, for a message, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
