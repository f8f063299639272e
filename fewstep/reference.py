"""Compute the real images' side of a protocol: statistics, and features where a metric compares images.

python -m fewstep.reference --spec SPEC --latents manifest.json --extractor WEIGHTS --out ref.npz
python -m fewstep.reference --spec SPEC --published RECORD --extractor WEIGHTS --out ref.npz
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import ReferenceSpec
from .evaluation.reference_statistics import write_reference


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`write_reference`.

    Raises:
        ValueError: not exactly the one source of images that the spec asks for.
    """
    arguments = parser(__doc__)
    arguments.add_argument(
        "--latents", type=Path, nargs="*", default=[], help="manifest.json of pixel shards"
    )
    arguments.add_argument("--published", type=Path, nargs="*", default=[], help="record of a reference")
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    given = arguments.parse_args(argv)
    spec = read_spec(ReferenceSpec, given.spec)
    manifests, records = given.latents, given.published
    if len(manifests) + len(records) != 1 or bool(manifests) != (spec.latents is not None):
        raise ValueError(f"{given.spec}: give {'--latents' if spec.latents else '--published'} alone, once")
    manifest, published = (paths[0] if paths else None for paths in (manifests, records))
    write_reference(spec, manifest, published, given.extractor, given.out)


if __name__ == "__main__":
    run(main)
