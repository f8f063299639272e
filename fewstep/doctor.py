"""Check this machine, the profile and the cluster before anything is run.

    python -m fewstep.doctor [--profile profiles/slurm]
    snakemake --profile profiles/slurm doctor

One line a check: ok, warn or fail, what was found, and the remedy. Exit status 1 if one failed. Nothing is
submitted or downloaded.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import plain_parser
from .environment import examine


def main(argv: list[str] | None = None) -> None:
    """Print every check; exit status 1 if one failed."""
    arguments = plain_parser(__doc__)
    slurm_profile = [Path("profiles/slurm")]
    arguments.add_argument(
        "--profile", type=Path, nargs="+", default=slurm_profile, help="later ones replace entries of earlier"
    )
    arguments.add_argument("--repository", type=Path, default=Path(), help="folder that holds config/")
    given = arguments.parse_args(argv)
    failed = False
    for check in examine(given.profile, given.repository):
        failed |= check.state == "fail"
        print(f"{check.state:<5} {check.name}: {check.text}", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
