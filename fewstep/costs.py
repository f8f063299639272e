"""Estimate what the configured targets cost, as CSV (``--out``) and, printed, as tables.

python -m fewstep.costs --spec SPEC [--profile profiles/slurm] --out plan.csv

By rule and by run, and the days until all is done on so many GPUs, with the profile's GPUs and time limits.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .common.files import write_text
from .config import read_spec
from .config.specs import CostsSpec
from .environment.durations import days
from .environment.profile import Profile


def main(argv: list[str] | None = None) -> None:
    """Run the stage.

    Raises:
        ConfigError: a bad spec or profile.
        ValueError: networks cannot be counted, because torch is missing.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--profile", type=Path, nargs="*", default=[], help="later ones replace entries")
    options = arguments.parse_args(argv)
    spec = read_spec(CostsSpec, options.spec)
    try:
        from .bench import estimate
    except ModuleNotFoundError as error:
        raise ValueError(
            f"networks are counted with torch, and this Python has no {error.name}: pip install -e ., "
            "or --software-deployment-method conda"
        ) from None
    seconds = [estimate.job_line(spec, line).seconds for line in spec.lines]
    ends = days(spec, seconds, Profile.read(options.profile))
    rules, runs = estimate.with_totals(estimate.estimate(spec)), estimate.by_run(spec)
    print(estimate.text_of(rules), estimate.text_of(runs), estimate.text_of_ends(ends), sep="\n\n")
    write_text(options.out, estimate.csv_of([*rules, *runs], ends))


if __name__ == "__main__":
    run(main)
