"""The training objectives, one file each, found by name.

A new method is a file here with one subclass of Method, a parameter class in config/losses.py
whose ``name`` is the file's, and an entry in config/methods/.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from ..core.method import Method


def names() -> list[str]:
    """The methods that exist, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[Method]:
    """The method class of file ``name``.

    Raises:
        ValueError: no such file, or it does not define exactly one method.
    """
    if name not in names():
        raise ValueError(f"unknown method {name!r}; known: {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"{module.__file__}: defines {len(found)} subclasses of Method, must be one")
    return found[0]


def build(params: Any) -> Method:
    """The method that ``params`` (a parameter class of config/losses.py) names, with these parameters."""
    return find(params.name)(params)
