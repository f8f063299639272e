"""Measure what this machine does in a second, for config/costs.yaml, and what a training step costs.

    python -m fewstep.bench encode|load|sample|score|train-step|attention [--repeats N] [--out x.csv]
    python -m fewstep.bench gpu [--minutes 8] [--out gpu.csv]

All cases of a run take turns, so that a change in the machine's load meets them alike; the least and the
median of the repeats are told. A case that fails says why in its row. Rows are written as they come, to
x-partial.csv, and to x.csv when all are there. Networks are random: speed does not depend on weights. The
sizes are small and, with ``--large``, those of ImageNet (VA-VAE f16d32, LightningDiT-XL/1), which want a GPU.
``--profile`` adds a table of where the time goes.

``gpu`` measures what is most wanted of a GPU, within minutes (bench/gpu.py).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from ..common.cli import plain_parser, run
from ..common.files import write_text
from . import as_csv, as_text, attention, batches, gpu, partial_of, profile_of, throughput, train_step
from .meters import Case

BENCHMARKS = {
    **throughput.CASES,
    "load": batches.cases,
    "train-step": train_step.cases,
    "attention": attention.cases,
}
OPTIONS = {"train-step": train_step.add_options, "attention": attention.add_options}
"""Of the benchmarks that have some of their own."""


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark, print its table and perhaps write it.

    Raises:
        ConfigError: a bad spec.
        ValueError: ``gpu`` without a GPU.
    """
    arguments = plain_parser(__doc__)
    choice = arguments.add_subparsers(dest="what", required=True, metavar="|".join([*BENCHMARKS, "gpu"]))
    for name in BENCHMARKS:
        options = choice.add_parser(name)
        options.add_argument("--repeats", type=int, default=5, help="turns of every case (%(default)s)")
        options.add_argument("--large", action="store_true", help="the sizes of ImageNet")
        options.add_argument("--out", type=Path, help="CSV to write")
        options.add_argument("--profile", action="store_true", help="where the time goes; to x-profile.csv")
        if name in OPTIONS:
            OPTIONS[name](options)
        else:
            options.add_argument("--batch", type=int, default=64, help="images at once (%(default)s)")
    gpu.add_options(choice.add_parser("gpu"))
    given = arguments.parse_args(argv)
    if given.what == "gpu":
        gpu.run_all(given.minutes, given.out, given.tiny)
        return
    if given.repeats < 1 or (given.what not in OPTIONS and given.batch < 2):
        arguments.error("--repeats must be 1 or more, --batch 2 or more")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases = BENCHMARKS[given.what](given, Path(folder))
        for done, case in enumerate(cases, 1):
            case.attempt(case.warm_up)
            case.attempt(case.measure)
            _write(given, cases[:done])
        for _ in range(given.repeats - 1):
            for case in cases:
                case.attempt(case.measure)
            _write(given, cases)
        if given.out:
            write_text(given.out, as_csv(_rows(given, cases)))
            partial_of(given.out).unlink(missing_ok=True)
        print(as_text(_rows(given, cases)))
        if given.profile:
            rows = [{"benchmark": given.what, **case.profile()} for case in cases if not case.note]
            print(as_text(rows))
            if given.out:
                write_text(profile_of(given.out), as_csv(rows))


def _rows(given: argparse.Namespace, cases: Sequence[Case]) -> list[dict[str, str]]:
    return [{"benchmark": given.what, **case.row(cases[0])} for case in cases]


def _write(given: argparse.Namespace, cases: Sequence[Case]) -> None:
    if given.out:
        write_text(partial_of(given.out), as_csv(_rows(given, cases)))


if __name__ == "__main__":
    run(main)
