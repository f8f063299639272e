"""Encode captions to a store of text embeddings.

    python -m fewstep.text --spec SPEC --captions RECORD [--encoder FILE] --out MANIFEST

``--captions`` is the record of the asset that has them, ``--encoder`` the model file of a CLIP or the record
of fetched weights. Parts of the store appear beside MANIFEST while it works, and the manifest last; an
encoding that was stopped goes on behind the parts that are whole.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .common.cli import parser, run
from .config import read_spec
from .config.specs import TextSpec
from .data.text_encoding import encode_text


def main(argv: list[str] | None = None) -> None:
    """Run the stage; errors as for `encode_text`."""
    arguments = parser(__doc__)
    arguments.add_argument("--captions", type=Path, required=True, help="record of the asset that has them")
    arguments.add_argument(
        "--encoder", type=Path, nargs="?", help="model file, or record of fetched weights, if it has any"
    )
    given = arguments.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encode_text(read_spec(TextSpec, given.spec), given.captions, given.encoder, given.out, device)


if __name__ == "__main__":
    run(main)
