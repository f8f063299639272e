"""Write the samples of a cell as an npz for ADM's evaluator, or as a folder of PNGs.

    python -m fewstep.images --spec SPEC --images images.tar --out x.npz
    python -m fewstep.images --spec SPEC --images images.tar --out FOLDER/

SPEC is that of the samples. The workflow does both for a target that is named like the samples, with
the end .npz or .pngs. The npz holds arr_0, uint8 (n, H, W, C), and arr_1, the labels. FOLDER is new or empty.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import ConfigError, digest, read_spec_of
from .config.specs import sample_spec_class
from .evaluation.image_archive import open_images, write_npz, write_pngs


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Raises:
        ValueError: a damaged archive, one of another spec, data that are not images, or a folder with files.
    """
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, required=True)
    given = arguments.parse_args(argv)
    archive = open_images(given.images)
    if archive.card.get("spec") != digest(read_spec_of(sample_spec_class, given.spec)):
        raise ConfigError(f"{given.images}: spec: these images are not of {given.spec}; sample again")
    if archive.card["uint8"] == "none":
        raise ConfigError(f"{given.images}: uint8: none: these data are not images")
    (write_npz if given.out.suffix == ".npz" else write_pngs)(archive, given.out)


if __name__ == "__main__":
    run(main)
