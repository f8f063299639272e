"""Score the images of one cell under a protocol.

    python -m fewstep.score --spec SPEC --images images.tar --extractor WEIGHTS --reference REF --out x.json
    python -m fewstep.score --spec SPEC --images images.tar --prompts RECORD --scorers FILE ... --out x.json
    python -m fewstep.score --spec SPEC --model model.safetensors --latents manifest.json --out x.json

    python -m fewstep.score --images FOLDER --protocol NAME [--config config/demo.yaml] --out x.json

The third is of the likelihood of real images under a model. The last is for images from elsewhere: a folder
of PNG or JPEG files, an npz with arr_0, or a WebDataset tar, under a protocol of the configuration (a preset,
by default the paper's scale). Extractor, reference, prompts and scorers are where the workflow has them. The
protocol in the spec says which of the first three. REF is an npz that fewstep.reference made, or
the record of a fetched asset that holds mu and sigma; RECORD that of
the asset with the prompts. No number is written when count, size, dimensions, reference, extractor, prompts
or scorers disagree.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .common.cli import parser, run
from .config import ConfigError, read_spec_of
from .config.base import complete, read_yaml
from .config.specs import (
    AnyScoreSpec,
    ForeignPromptScoreSpec,
    ForeignSpec,
    LikelihoodScoreSpec,
    PromptScoreSpec,
    score_spec_class,
)

if TYPE_CHECKING:
    from .plan import Plan


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`score_images` and :func:`score_prompt_images`."""
    arguments = parser(__doc__, spec=False)
    arguments.add_argument("--images", type=Path, nargs="?")
    arguments.add_argument("--model", type=Path, nargs="?", help="whose likelihoods are asked for")
    arguments.add_argument("--latents", type=Path, nargs="?", help="manifest.json of the real images")
    arguments.add_argument("--extractor", type=Path, nargs="?", help="weights of the extractor, if any")
    arguments.add_argument("--reference", type=Path, nargs="?", help="what features are compared with")
    arguments.add_argument("--prompts", type=Path, nargs="?", help="record of the asset with the prompts")
    arguments.add_argument(
        "--scorers", type=Path, nargs="*", default=[], help="files of each, in the order of their names"
    )
    arguments.add_argument("--protocol", help="its name in the configuration, for images from elsewhere")
    arguments.add_argument("--config", type=Path, help="preset with the protocol, e.g. config/demo.yaml")
    arguments.add_argument(
        "--channels-last", action="store_true", help="the extractor's convolutions in this memory format"
    )
    given = arguments.parse_args(argv)
    if (given.spec is None) == (given.protocol is None):
        raise ConfigError("give --spec, for the images of a cell, or --protocol, for images from elsewhere")
    spec: AnyScoreSpec | ForeignSpec
    spec = _foreign(given) if given.protocol is not None else read_spec_of(score_spec_class, given.spec)
    if isinstance(spec, LikelihoodScoreSpec):
        from .evaluation.likelihood import score_likelihoods

        model, latents = (
            _given(getattr(given, name), f"--{name}", given.spec) for name in ("model", "latents")
        )
        score_likelihoods(spec, model, latents, given.out)
        return
    images = _given(given.images, "--images", given.spec)
    if isinstance(spec, PromptScoreSpec | ForeignPromptScoreSpec):
        from .evaluation.prompt_scoring import score_prompt_images

        prompts = _given(given.prompts, "--prompts", given.spec)
        score_prompt_images(spec, images, given.scorers, prompts, given.out)
    else:
        from .evaluation.scoring import score_images

        reference = _given(given.reference, "--reference", given.spec)
        score_images(spec, images, given.extractor, reference, given.out, given.channels_last)


def read_plan(preset: Path | None) -> Plan:
    """The configuration of the repository, or of the working directory, with a preset laid over it."""
    from .plan import Plan

    repository = Path(__file__).parents[1]
    if not (repository / "config").is_dir():
        repository = Path()
    raw = {} if preset is None else read_yaml(preset)
    return Plan(complete(raw, repository), repository, [] if preset is None else [preset])


def _foreign(given: Namespace) -> ForeignSpec:
    """The spec of a protocol by its name; files that are not given are filled in from the plan."""
    from .plan.stage_specs import foreign_score

    plan = read_plan(given.config)
    spec, files = foreign_score(plan, given.protocol)
    for name, paths in files.items():
        if not getattr(given, name):
            found = [Path(path) for path in paths]
            if absent := [path for path in found if not path.is_file()]:
                raise ConfigError(
                    f"protocol {given.protocol}: needs {absent[0]}, which is not there: make it with "
                    f"snakemake, or pass --{name}"
                )
            setattr(given, name, found if name == "scorers" else next(iter(found), None))
    return spec


def _given(path: Path | None, option: str, spec: Path | None) -> Path:
    if path is None:
        raise ConfigError(f"{spec}: protocol: needs a file; pass {option}")
    return path


if __name__ == "__main__":
    run(main)
