"""Fit a smooth time embedding to that of a trained network, and keep all its other weights.

    python -m fewstep.reembed --spec SPEC --model model.safetensors --out model.safetensors

A function of one number: no data and no network. The card of the result holds the residual of the fit, the
gap between the new embedding's tangent and a difference at five times, and the sha256 of the old model.
"""

from __future__ import annotations

from pathlib import Path

from .backbones.reembedding import reembed_model
from .common.cli import parser, run
from .config import read_spec
from .config.specs import ReembedSpec


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors as for :func:`reembed_model`."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, required=True, help="of the network with its own embedding")
    given = arguments.parse_args(argv)
    reembed_model(read_spec(ReembedSpec, given.spec), given.model, given.out)


if __name__ == "__main__":
    run(main)
