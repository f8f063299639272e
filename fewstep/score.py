"""Score the images of one cell under a protocol.

    python -m fewstep.score --spec SPEC --images images.tar --extractor WEIGHTS --reference REF --out x.json

REF is an npz that fewstep.reference made, or the record of a fetched asset that holds mu and sigma. No
number is written when count, size, dimensions, reference or extractor disagree.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import ScoreSpec
from .evaluation.scoring import score_images


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`score_images`."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, required=True)
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    arguments.add_argument("--reference", type=Path, required=True)
    arguments.add_argument(
        "--channels-last", action="store_true", help="the extractor's convolutions in this memory format"
    )
    given = arguments.parse_args(argv)
    score_images(
        read_spec(ScoreSpec, given.spec),
        given.images,
        given.extractor,
        given.reference,
        given.out,
        given.channels_last,
    )


if __name__ == "__main__":
    run(main)
