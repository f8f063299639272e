"""Score the images of one cell under a protocol.

    python -m fewstep.score --spec SPEC --images images.tar --extractor WEIGHTS --reference REF --out x.json
    python -m fewstep.score --spec SPEC --images images.tar --prompts RECORD --scorers FILE ... --out x.json

The protocol in the spec says which of both. REF is an npz that fewstep.reference made, or the record of a
fetched asset that holds mu and sigma; RECORD that of the asset with the prompts. No number is written when
count, size, dimensions, reference, extractor, prompts or scorers disagree.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import ConfigError, read_spec_of
from .config.specs import PromptScoreSpec, score_spec_class


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`score_images` and :func:`score_prompt_images`."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, required=True)
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    arguments.add_argument("--reference", type=Path, nargs="?", help="what features are compared with")
    arguments.add_argument("--prompts", type=Path, nargs="?", help="record of the asset with the prompts")
    arguments.add_argument(
        "--scorers", type=Path, nargs="*", default=[], help="files of each, in the order of their names"
    )
    arguments.add_argument(
        "--channels-last", action="store_true", help="the extractor's convolutions in this memory format"
    )
    given = arguments.parse_args(argv)
    spec = read_spec_of(score_spec_class, given.spec)
    if isinstance(spec, PromptScoreSpec):
        from .evaluation.prompt_scoring import score_prompt_images

        prompts = _given(given.prompts, "--prompts", given.spec)
        score_prompt_images(spec, given.images, given.scorers, prompts, given.out)
    else:
        from .evaluation.scoring import score_images

        reference = _given(given.reference, "--reference", given.spec)
        score_images(spec, given.images, given.extractor, reference, given.out, given.channels_last)


def _given(path: Path | None, option: str, spec: Path) -> Path:
    if path is None:
        raise ConfigError(f"{spec}: protocol: needs a file; pass {option}")
    return path


if __name__ == "__main__":
    run(main)
