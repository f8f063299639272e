"""Make images of chosen classes by a trained model.

    python -m fewstep.generate MODEL --classes 207 360 --seed 3 --steps 2 --out grid.png
    python -m fewstep.generate MODEL --classes 207 360 --seed 3 --steps 2 --out FOLDER/

MODEL is a model.safetensors, or a folder that fewstep.pipeline wrote. Sampler and guidance are those that its
row has for that number of steps, unless --sampler names another. Images are numbered in the folder, which is
new or empty. Classes of own images can be given by their names.
"""

from __future__ import annotations

import re
from pathlib import Path

from .common.cli import plain_parser, run
from .common.files import atomic
from .config import ConfigError
from .config.base import parse
from .config.sampling import Choice
from .config.settings import Guidance, Sampler


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for `load` and `Generator.images`."""
    arguments = plain_parser(__doc__)
    arguments.add_argument("model", type=Path, help="model.safetensors, or the folder of a pipeline")
    arguments.add_argument(
        "--classes", type=_label, nargs="+", required=True, help="numbers or names; one image of each"
    )
    arguments.add_argument("--steps", type=int, default=1, help="of the sampler; 1 by default")
    arguments.add_argument("--seed", type=int, default=0, help="of the noise; 0 by default")
    arguments.add_argument("--out", required=True, help="a .png, or a folder/ of PNGs, new or empty")
    arguments.add_argument("--columns", type=int, help="of the grid; by default about as many as rows")
    arguments.add_argument(
        "--sampler", choices=["euler", "cm", "mix", "jump"], help="instead of the row's own"
    )
    arguments.add_argument("--guidance", type=float, help="scale of guidance, with --sampler")
    arguments.add_argument("--tokenizer", type=Path, help="its weights, where the model's card finds none")
    arguments.add_argument("--latents", type=Path, help="manifest.json, where the card has no normalisation")
    arguments.add_argument("--sampling", type=Path, help="spec of stage sampling, where the card has none")
    arguments.add_argument("--device", help="by default a GPU if there is one")
    given = arguments.parse_args(argv)
    choice = None
    if given.sampler:
        sampler = parse(Sampler, {"kind": given.sampler}, "--sampler")
        scale = {"scale": given.guidance}
        guidance = None if given.guidance is None else parse(Guidance, scale, "--guidance")
        choice = Choice(sampler=sampler, guidance=guidance)
    elif given.guidance is not None:
        raise ConfigError("--guidance: belongs to --sampler; the row's own sampler has its own guidance")
    folder = given.out.endswith("/") or Path(given.out).is_dir()
    if not folder and not given.out.endswith(".png"):
        raise ConfigError(f"--out: {given.out}: must end with .png, or with / for a folder of PNGs")
    if folder and Path(given.out).is_dir() and any(Path(given.out).iterdir()):
        raise ConfigError(f"--out: {given.out}: is not empty; name a new folder, or empty it")
    if given.columns is not None and given.columns < 1:
        raise ConfigError(f"--columns: {given.columns}: must be at least 1")

    from .evaluation.generator import grid
    from .exporting.loading import load  # seconds to import

    model = load(given.model, given.tokenizer, given.latents, given.sampling, given.device)
    pictures = model(given.classes, given.steps, given.seed, choice)
    out = Path(given.out)
    if folder:
        out.mkdir(parents=True, exist_ok=True)
    for place, picture in enumerate(pictures if folder else [grid(pictures, given.columns)]):
        with atomic(out / f"{place:06d}.png" if folder else out) as temporary:
            picture.save(temporary)


def _label(word: str) -> int | str:
    return int(word) if re.fullmatch(r"-?\d+", word) else word


if __name__ == "__main__":
    run(main)
