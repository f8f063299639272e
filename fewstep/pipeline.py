"""Write a model as a folder that diffusers loads.

    python -m fewstep.pipeline --spec SPEC --model model.safetensors --tokenizer model.safetensors
        --latents manifest.json --encoder model.safetensors --out pipeline/model_index.json

A text-to-image model that is trained here is the base of the students that fewstep.export writes. One of
classes, published or trained here, is a `fewstep.Pipeline`, with a model card. The folder of ``--out`` is
replaced as a whole; ``--push-to-hub`` then uploads it, into a private repository unless ``--public``.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import ConfigError, read_spec_of
from .config.specs import ClassPipelineSpec, pipeline_spec_class


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for `export_pipeline` and `export_class_pipeline`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="of the network")
    arguments.add_argument("--tokenizer", type=Path, nargs="*", default=[], help="model of the autoencoder")
    arguments.add_argument("--latents", type=Path, nargs="*", default=[], help="manifest.json: normalisation")
    arguments.add_argument("--encoder", type=Path, nargs="*", default=[], help="model of the text encoder")
    arguments.add_argument("--push-to-hub", metavar="REPO", help="upload the folder: owner/name")
    arguments.add_argument("--public", action="store_true", help="make that repository a public one")
    given = arguments.parse_args(argv)
    spec = read_spec_of(pipeline_spec_class, given.spec)
    files = [next(iter(paths), None) for paths in (given.tokenizer, given.latents, given.encoder)]
    if given.push_to_hub:
        from .data.hub import check_upload

        check_upload(given.push_to_hub)
    elif given.public:
        raise ConfigError("--public: belongs to --push-to-hub")
    if isinstance(spec, ClassPipelineSpec):
        from .exporting.class_folder import export_class_pipeline

        export_class_pipeline(spec, given.model, files[0], files[1], given.out)
    else:
        from .exporting.pipeline import export_pipeline

        tokenizer, latents, encoder = (
            _needed(path, f"--{name}", given.spec)
            for path, name in zip(files, ("tokenizer", "latents", "encoder"), strict=True)
        )
        export_pipeline(spec, given.model, tokenizer, latents, encoder, given.out)
    if given.push_to_hub:
        from .data.hub import upload_folder

        upload_folder(given.out.parent, given.push_to_hub, given.public)


def _needed(path: Path | None, option: str, spec: Path) -> Path:
    if path is None:
        raise ConfigError(f"{spec}: a text-to-image model needs {option}")
    return path


if __name__ == "__main__":
    run(main)
