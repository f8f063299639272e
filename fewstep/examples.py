"""Take real images of some classes, or of the captions of some prompts, out of a data set.

python -m fewstep.examples --spec SPEC --source RECORD [--prompts RECORD] --out images.tar
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import ExamplesSpec
from .evaluation.real_images import write_examples


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`write_examples`."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, required=True, help="record of the data set")
    arguments.add_argument("--prompts", type=Path, nargs="?", help="record of the prompts, if there are any")
    given = arguments.parse_args(argv)
    write_examples(read_spec(ExamplesSpec, given.spec), given.source, given.prompts, given.out)


if __name__ == "__main__":
    run(main)
