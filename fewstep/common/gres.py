"""Slurm's generic resources, as text."""

from __future__ import annotations


def gpus_in(gres: str) -> int:
    """GPUs in a Slurm resource: "gpu" is 1, "gpu:4" and "gpu:h100:4" are 4, "" is 0."""
    name, *rest = gres.split(":")
    if not gres:
        return 0
    if name != "gpu" or len(rest) > 2:
        raise ValueError(f"gres {gres!r}: expected gpu:COUNT or gpu:MODEL:COUNT")
    return int(rest[-1]) if rest and rest[-1].isdigit() else 1
