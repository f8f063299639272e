"""Write a text-to-image model that is trained here as a folder that diffusers loads.

    python -m fewstep.pipeline --spec SPEC --model model.safetensors --tokenizer model.safetensors
        --latents manifest.json --encoder model.safetensors --out pipeline/model_index.json

The folder of ``--out`` is the base of the students that fewstep.export writes. It is replaced as a whole.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import PipelineSpec
from .exporting.pipeline import export_pipeline


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`export_pipeline`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="of the network")
    arguments.add_argument("--tokenizer", type=Path, required=True, help="model of the autoencoder")
    arguments.add_argument("--latents", type=Path, required=True, help="manifest.json, for the normalisation")
    arguments.add_argument("--encoder", type=Path, required=True, help="model of the text encoder")
    given = arguments.parse_args(argv)
    spec = read_spec(PipelineSpec, given.spec)
    export_pipeline(spec, given.model, given.tokenizer, given.latents, given.encoder, given.out)


if __name__ == "__main__":
    run(main)
