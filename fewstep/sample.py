"""Sample the images of one cell.

python -m fewstep.sample --spec SPEC --model model.safetensors [--base model.safetensors]
    [--text manifest.json] [--latents manifest.json] [--tokenizer WEIGHTS]
    [--pipeline ASSET.json ... --prompts ASSET.json] [--compile] [--capture] [--channels-last]
    --out images.tar
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from .common.cli import add_compiler, parser, run
from .config import ConfigError
from .config.base import read_spec_of
from .config.specs import PipelineSampleSpec, sample_spec_class
from .evaluation.generation import Options, generate_images


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`generate_images`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, nargs="*", help="what is sampled from, if not a pipeline")
    arguments.add_argument("--base", type=Path, nargs="*", help="model that the weights, adapters, belong to")
    arguments.add_argument("--text", type=Path, nargs="*", help="manifest.json of the prompts' text store")
    arguments.add_argument(
        "--latents", type=Path, nargs="*", help="manifest.json, if only it has the normalisation"
    )
    arguments.add_argument("--tokenizer", type=Path, nargs="*", help="weights of the decoder")
    arguments.add_argument(
        "--pipeline", type=Path, nargs="*", help="records of a pipeline's asset and its adapters'"
    )
    arguments.add_argument("--prompts", type=Path, nargs="*", help="record of the prompts of a pipeline")
    add_options(arguments)
    given = arguments.parse_args(argv)
    lists = (given.latents, given.tokenizer, given.base, given.text, given.model, given.prompts)
    manifest, weights, base, text, model, prompts = (paths[0] if paths else None for paths in lists)
    options = Options(given.compile, given.capture, given.channels_last)
    spec = read_spec_of(sample_spec_class, given.spec)
    if isinstance(spec, PipelineSampleSpec):
        if prompts is None:
            raise ConfigError(f"{given.spec}: a pipeline is sampled from prompts; pass --prompts")
        from .evaluation.pipeline_generation import generate_by_pipeline  # diffusers takes seconds to import

        generate_by_pipeline(spec, given.pipeline or [], prompts, given.out)
        return
    if model is None:
        raise ConfigError(f"{given.spec}: pass --model")
    generate_images(spec, model, given.out, manifest, weights, options, base, text)


def add_options(arguments: ArgumentParser) -> None:
    """How the device is used: none of it is in the spec."""
    add_compiler(arguments, "--compile", "torch.compile the network's blocks and the decoder")
    arguments.add_argument(
        "--capture",
        action="store_true",
        help="replay the network as CUDA graphs: small ones wait for no host",
    )
    arguments.add_argument(
        "--channels-last", action="store_true", help="the decoder's convolutions in this memory format"
    )


if __name__ == "__main__":
    run(main)
