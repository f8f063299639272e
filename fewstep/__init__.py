"""fewstep: the tables and figures of few-step image-generation papers as one Snakemake DAG."""

from importlib import import_module as _import_module
from typing import Any

__version__ = "0.2.0"

_LAZY = {"load": "exporting.loading", "Pipeline": "exporting.class_pipeline"}
"""Name -> module that has it: these need torch, which the rest of the package does without."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_LAZY[name]}"), name)
