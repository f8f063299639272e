"""One Python file of a module of this package and all that it imports.

Folders of `fewstep.Pipeline` have it as pipeline.py, for those who have not installed the package. Sources
are copied as they are; an importer in the file makes of them a package whose name holds their checksum, so
that pipelines of several versions do not meet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from ..common.provenance import PACKAGE, closure

FORM = """# Made by fewstep {version} of its own modules; SOURCES are these, by their names.
import importlib
import importlib.abc
import importlib.util
import json
import sys

import diffusers
import pydantic
import safetensors
import torch
import yaml

NAME = "{name}"
SOURCES = json.loads(
    {sources}
)


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    def find_spec(self, name, path=None, target=None):
        if name == NAME or name.startswith(NAME + "."):
            inner = name[len(NAME) + 1 :]
            if inner in SOURCES:
                return importlib.util.spec_from_loader(name, self, is_package=self.is_package(name))
        return None

    def get_source(self, name):
        return SOURCES[name[len(NAME) + 1 :]]

    def is_package(self, name):
        inner = name[len(NAME) + 1 :]
        return not inner or any(other.startswith(inner + ".") for other in SOURCES)


if NAME not in sys.modules:
    sys.meta_path.insert(0, _Sources())
{export} = importlib.import_module(NAME + ".{module}").{export}
"""


def bundle(module: str, export: str, more: Iterable[str], version: str) -> tuple[str, str]:
    """The text of the file, and the name of the package that it makes.

    Args:
        module: name of the module, without that of this package.
        export: what the file shall have of it.
        more: modules that it imports by a name that is found at run time.
    """
    found = closure(PACKAGE, [module, *more], left_out=())
    sources = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    for name in [*sources]:
        parts = name.split(".")[:-1]
        for length in range(len(parts) + 1):
            parent = ".".join(parts[:length])
            path = PACKAGE.joinpath(*parts[:length], "__init__.py")
            sources.setdefault(parent, path.read_text(encoding="utf-8"))
    text = json.dumps(sources, sort_keys=True)
    name = f"fewstep_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return FORM.format(version=version, name=name, sources=repr(text), module=module, export=export), name
