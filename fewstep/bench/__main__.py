"""Measure what this machine does in a second, for config/costs.yaml, and what a training step costs.

    python -m fewstep.bench encode|sample|score|train-step|attention [--repeats N] [--out x.csv]

All cases of a run take turns, so that a change in the machine's load meets them alike; the least and the
median of the repeats are told. Networks are random: speed does not depend on weights. The sizes are small
and, with ``--large``, those of ImageNet (VA-VAE f16d32, LightningDiT-XL/1), which want a GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from ..common.cli import run
from ..common.files import write_text
from . import as_csv, as_text, attention, throughput, train_step

BENCHMARKS = {**throughput.CASES, "train-step": train_step.cases, "attention": attention.cases}
OPTIONS = {"train-step": train_step.add_options, "attention": attention.add_options}
"""Of the benchmarks that have some of their own."""


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark, print its table and perhaps write it.

    Raises:
        ConfigError: a bad spec.
    """
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    choice = arguments.add_subparsers(dest="what", required=True, metavar="|".join(BENCHMARKS))
    for name in BENCHMARKS:
        options = choice.add_parser(name)
        options.add_argument("--repeats", type=int, default=5, help="turns of every case (%(default)s)")
        options.add_argument("--large", action="store_true", help="the sizes of ImageNet")
        options.add_argument("--out", type=Path, help="CSV to write")
        if name in OPTIONS:
            OPTIONS[name](options)
        else:
            options.add_argument("--batch", type=int, default=64, help="images at once (%(default)s)")
    given = arguments.parse_args(argv)
    if given.repeats < 1 or (given.what not in OPTIONS and given.batch < 2):
        arguments.error("--repeats must be 1 or more, --batch 2 or more")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cases = BENCHMARKS[given.what](given, Path(folder))
        for case in cases:
            case.warm_up()
        for _ in range(given.repeats):
            for case in cases:
                case.measure()
    rows = [{"benchmark": given.what, **case.row(cases[0])} for case in cases]
    print(as_text(rows))
    if given.out:
        write_text(given.out, as_csv(rows))


if __name__ == "__main__":
    run(main)
