"""Write a model as a folder that diffusers loads, and upload it.

    python -m fewstep.pipeline --spec SPEC --model model.safetensors --tokenizer model.safetensors
        --latents manifest.json --encoder model.safetensors --out pipeline/model_index.json
    python -m fewstep.pipeline --out pipeline/model_index.json --push-to-hub owner/name

A text-to-image model that is trained here is the base of the students that fewstep.export writes. One of
classes, published or trained here, is a `fewstep.Pipeline`, with a model card. The folder of ``--out`` is
replaced as a whole. ``--push-to-hub`` uploads it, to a private repository unless ``--public``, which is made
if it is not there; without ``--spec`` it uploads the folder that is there.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from .common.cli import parser, run
from .config import ConfigError, read_spec_of
from .config.specs import ClassPipelineSpec, pipeline_spec_class


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for `export_pipeline`, `export_class_pipeline` and `upload_folder`."""
    arguments = parser(__doc__, spec=False)
    arguments.add_argument("--model", type=Path, help="of the network")
    arguments.add_argument("--tokenizer", type=Path, nargs="*", default=[], help="model of the autoencoder")
    arguments.add_argument("--latents", type=Path, nargs="*", default=[], help="manifest.json: normalisation")
    arguments.add_argument("--encoder", type=Path, nargs="*", default=[], help="model of the text encoder")
    arguments.add_argument("--push-to-hub", metavar="REPO", help="upload the folder: owner/name")
    arguments.add_argument("--public", action="store_true", help="to a public repository, not a private one")
    given = arguments.parse_args(argv)
    if given.spec is None and given.push_to_hub is None:
        raise ConfigError("give --spec, to write a folder, or --push-to-hub, to upload the one of --out")
    inputs = [name for name in ("model", "tokenizer", "latents", "encoder") if getattr(given, name)]
    if given.spec is None and inputs:
        raise ConfigError(
            f"--{inputs[0]}: belongs to --spec, without which the folder of --out is uploaded as it is"
        )
    if given.public and given.push_to_hub is None:
        raise ConfigError("--public: belongs to --push-to-hub")
    if given.push_to_hub is not None:
        from .data.hub import check_upload

        check_upload(given.push_to_hub)
    if given.spec is not None:
        _write(given)
    if given.push_to_hub is not None:
        from .data.hub import upload_folder
        from .exporting.replaced_folder import whole_folder

        upload_folder(whole_folder(given.out), given.push_to_hub, given.public)


def _write(given: Namespace) -> None:
    """Write the folder of ``--out``."""
    spec = read_spec_of(pipeline_spec_class, given.spec)
    model = _needed(given.model, "--model", given.spec)
    files = [next(iter(paths), None) for paths in (given.tokenizer, given.latents, given.encoder)]
    if isinstance(spec, ClassPipelineSpec):
        from .exporting.class_folder import export_class_pipeline

        export_class_pipeline(spec, model, files[0], files[1], given.out)
        return
    from .exporting.pipeline import export_pipeline

    tokenizer, latents, encoder = (
        _needed(path, f"--{name}", given.spec)
        for path, name in zip(files, ("tokenizer", "latents", "encoder"), strict=True)
    )
    export_pipeline(spec, model, tokenizer, latents, encoder, given.out)


def _needed(path: Path | None, option: str, spec: Path) -> Path:
    if path is None:
        raise ConfigError(f"{spec}: to write the folder takes {option}")
    return path


if __name__ == "__main__":
    run(main)
