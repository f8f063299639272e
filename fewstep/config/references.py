"""References between entries of the configuration: declared on the field, checked by one walker.

recipe: Annotated[str, Ref("recipes")]
samplers: Annotated[dict[int, str], Ref("samplers")]           # the values are names
encode: Annotated[dict[str, Rate], Ref("tokenizers", keys=True)]
file: Annotated[str | None, Ref("files of", within="asset")]   # of the asset that another field names
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from pydantic import BaseModel

from .base import Mistakes, require_known


@dataclass(frozen=True)
class Ref:
    """Marks a field that holds names of entries of ``to``: text, a list, or the values of a mapping."""

    to: str
    keys: bool = False
    """The names are the mapping's keys."""
    within: str = ""
    """Field, or fields joined by dots, whose value is added to ``to``."""


def check_references(
    model: BaseModel, file: str, key: str, names: Mapping[str, Collection[str]], mistakes: Mistakes
) -> None:
    """Collect the names in ``model`` that are not among ``names``, kind by kind.

    Args:
        key: where the model stands in ``file``.
        names: kind of entry -> the names there are; kinds that are not in it are not checked.
    """
    for where, owner, ref, value in _marked(model, key):
        kind, within = ref.to, cast(Any, owner)
        for field in filter(None, ref.within.split(".")):
            within = getattr(within, field, None)
        if ref.within:
            kind = f"{kind} {within}"
        if isinstance(value, Mapping):
            value = list(value if ref.keys else value.values())
        found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        for name in found if kind in names else []:
            with mistakes.caught():
                require_known(name, names[kind], file, where)


def _marked(value: Any, key: str) -> Iterator[tuple[str, BaseModel, Ref, Any]]:
    """Place, owner, mark and value of every marked field of a model and of the models in it."""
    if isinstance(value, BaseModel):
        for name, ref in _fields(type(value)).items():
            where = key if name == "root" else f"{key}.{name}".removeprefix(".")
            if ref is not None:
                yield where, value, ref, getattr(value, name)
            yield from _marked(getattr(value, name), where)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _marked(inner, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _marked(inner, f"{key}.{getattr(inner, 'id', number)}")


@cache
def _fields(model: type[BaseModel]) -> dict[str, Ref | None]:
    return {
        name: next((mark for mark in field.metadata if isinstance(mark, Ref)), None)
        for name, field in model.model_fields.items()
    }
