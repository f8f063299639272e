"""Sample the images of one cell.

python -m fewstep.sample --spec SPEC --model model.safetensors [--latents manifest.json]
    [--tokenizer WEIGHTS] --out images.tar
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import SampleSpec
from .evaluation.generation import generate_images


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`generate_images`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True)
    arguments.add_argument(
        "--latents", type=Path, nargs="*", help="manifest.json, if only it has the normalisation"
    )
    arguments.add_argument("--tokenizer", type=Path, nargs="*", help="weights of the decoder")
    given = arguments.parse_args(argv)
    manifest, weights = (paths[0] if paths else None for paths in (given.latents, given.tokenizer))
    generate_images(read_spec(SampleSpec, given.spec), given.model, given.out, manifest, weights)


if __name__ == "__main__":
    run(main)
