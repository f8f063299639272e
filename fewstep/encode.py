"""Encode a data set to latent shards, or merge finished shards to a manifest.

    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --shard K --out SHARD
    python -m fewstep.encode --spec SPEC --source RECORD [--tokenizer FILE] --merge SHARD... --out MANIFEST

Shards can be made in any order and on any machines. Each is a contiguous range of the images, appears
whole or not at all, and has the same bytes on every run. The merge writes manifest.index.npz beside
manifest.json.
"""

from __future__ import annotations

from pathlib import Path

from .common.cli import parser, run
from .config import read_spec
from .config.specs import EncodeSpec
from .data.encoding import BATCH, encode_shard, merge_shards


def main(argv: list[str] | None = None) -> None:
    """Run the stage; errors as for `encode_shard` and `merge_shards`."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", type=Path, required=True, help="record of the fetched images")
    arguments.add_argument(
        "--tokenizer", type=Path, nargs="?", help="model file, or record of fetched weights, if it has any"
    )
    arguments.add_argument("--batch", type=int, default=BATCH, help="images encoded at once (%(default)s)")
    mode = arguments.add_mutually_exclusive_group(required=True)
    mode.add_argument("--shard", type=int, help="number of the shard to write")
    mode.add_argument("--merge", type=Path, nargs="+", metavar="SHARD", help="all shards")
    given = arguments.parse_args(argv)
    if given.batch < 1:
        arguments.error(f"--batch: {given.batch} is not a number of images")
    spec = read_spec(EncodeSpec, given.spec)
    if given.merge:
        merge_shards(spec, given.source, given.tokenizer, given.merge, given.out)
    else:
        encode_shard(spec, given.source, given.tokenizer, given.shard, given.out, given.batch)


if __name__ == "__main__":
    run(main)
