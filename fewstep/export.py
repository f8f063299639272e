"""Write a student that is adapters of SD3 as LoRA files of diffusers.

    python -m fewstep.export --spec SPEC --model model.safetensors --base model.safetensors
        [--origin model.safetensors] --target-embedder target_embedder.safetensors
        --one-file one-file/pytorch_lora_weights.safetensors --out pytorch_lora_weights.safetensors

``--out`` and ``--target-embedder`` are the student with any target time; ``--one-file`` is the student of
consistency sampling for plain diffusers (fewstep/exporting/student.py). A base whose time is embedded anew
needs ``--origin``, the model that it was made from: the files belong to that one.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import ExportSpec
from .exporting.student import Files, export_student


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`export_student`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="of the student")
    arguments.add_argument("--base", type=Path, required=True, help="model that its adapters belong to")
    arguments.add_argument("--origin", type=Path, nargs="*", help="model from which the base was re-embedded")
    arguments.add_argument("--target-embedder", type=Path, required=True, help="second file to write")
    arguments.add_argument("--one-file", type=Path, required=True, help="file for plain diffusers to write")
    given = arguments.parse_args(argv)
    origin = given.origin[0] if given.origin else None
    files = Files(given.out, given.target_embedder, given.one_file)
    export_student(read_spec(ExportSpec, given.spec), given.model, given.base, origin, files)


if __name__ == "__main__":
    run(main)
