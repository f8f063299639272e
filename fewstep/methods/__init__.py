"""The training objectives, a folder each, found by name.

``params.py`` holds the parameters with their defaults, the source of these, and what the objective needs of
network, teacher and schedule; it needs no torch. ``loss.py`` is the page to read beside the paper.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..config.objectives import LossParams

if TYPE_CHECKING:
    from ..core.method import Method

Base = TypeVar("Base")
_FOLDER = Path(__file__).parent


@cache
def parameter_classes() -> dict[str, type[LossParams]]:
    """Name of each method -> its parameter class, sorted by name.

    Raises:
        ValueError: a params.py does not define exactly one, or one of another name.
    """
    found = {}
    for name in sorted(path.parent.name for path in _FOLDER.glob("*/params.py")):
        found[name] = _only_subclass(f"{name}.params", LossParams)
        if found[name].model_fields["name"].default != name:
            raise ValueError(f"fewstep/methods/{name}/params.py: the default of its name must be {name!r}")
    return found


def find(name: str) -> type[Method]:
    """The method class of folder ``name``.

    Raises:
        ValueError: no such folder, or its loss.py does not define exactly one method.
    """
    if name not in parameter_classes():
        raise ValueError(f"unknown method {name!r}; known: {', '.join(parameter_classes())}")
    method: type[Method] = import_module("fewstep.core.method").Method  # not for the torch-free planning
    return _only_subclass(f"{name}.loss", method)


def build(params: LossParams) -> Method:
    """The method that ``params`` belong to, with these parameters."""
    return find(params.name)(params)


def logs(name: str, column: str) -> bool:
    """Whether the loss of a method may log a column; its loss.py is read but not imported."""
    files = [_FOLDER / name / "loss.py", *(_FOLDER.parent / "core").glob("*.py")]
    return any(f'"{column}"' in file.read_text(encoding="utf-8") for file in files)


def deviations(name: str) -> list[str]:
    """The list under "Deviations from the paper" in a loss.py, which is read but not imported."""
    tree = ast.parse((_FOLDER / name / "loss.py").read_text(encoding="utf-8"))
    items = (ast.get_docstring(tree) or "").partition("\nDeviations from the paper:\n\n* ")[2]
    return [" ".join(item.split()) for item in re.split(r"^\* ", items, flags=re.MULTILINE) if item]


def _only_subclass(module: str, base: type[Base]) -> type[Base]:
    """The one subclass of ``base`` that a module of this package defines."""
    found = [
        item
        for item in vars(import_module(f"{__name__}.{module}")).values()
        if isinstance(item, type) and issubclass(item, base) and item.__module__ == f"{__name__}.{module}"
    ]
    if len(found) != 1:
        raise ValueError(
            f"{__name__}.{module}: defines {len(found)} subclasses of {base.__name__}, must be one"
        )
    return found[0]
