"""Bring an asset to this machine, verify it and record what it is.

    python -m fewstep.fetch --spec SPEC --out assets/NAME.json

The files go to the folder beside the record, assets/NAME/. Files that are already there and right
are kept. The record is written last, so that its presence means that all files were verified.
With HF_HUB_OFFLINE set, what a hub asset needs must lie there already.
"""

from __future__ import annotations

from .common.cli import parser, run
from .config import read_spec
from .config.specs import FetchSpec
from .data.fetching import fetch_asset


def main(argv: list[str] | None = None) -> None:
    """Run the stage; errors as for `fetch_asset`."""
    given = parser(__doc__).parse_args(argv)
    spec = read_spec(FetchSpec, given.spec)
    fetch_asset(spec.name, spec.asset, given.out)


if __name__ == "__main__":
    run(main)
