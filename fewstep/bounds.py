"""Score real scenes with their captions and with others: the bounds of the scores of sampled scenes.

python -m fewstep.bounds --spec SPEC --prompts RECORD --scorers FILE ... --tokenizer WEIGHTS --out bounds.json
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import BoundsSpec
from .evaluation.scene_bounds import write_bounds


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`write_bounds`."""
    arguments = parser(__doc__)
    arguments.add_argument("--prompts", type=Path, required=True, help="record of the asset with the prompts")
    arguments.add_argument(
        "--scorers", type=Path, nargs="*", default=[], help="files of each, in the order of their names"
    )
    arguments.add_argument("--tokenizer", type=Path, nargs="?", help="weights of the tokenizer, if any")
    given = arguments.parse_args(argv)
    spec = read_spec(BoundsSpec, given.spec)
    write_bounds(spec, given.scorers, given.prompts, given.tokenizer, given.out)


if __name__ == "__main__":
    run(main)
