"""A digest of the sources that decide how a method trains.

Training stores the digest in its card; a table compares it with today's and marks the cell `stale`
when they differ. Comments, docstrings and formatting do not count.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

SHARED = ("core/*.py", "backbones/*.py", "data/loader.py", "data/shards.py", "train.py", "optimize.py")
_PACKAGE = Path(__file__).parent


def code_digest(loss: str, package: Path = _PACKAGE) -> str:
    """First 16 hex digits of the SHA-256 over the sources behind ``loss``.

    Args:
        loss: Name of the loss, which is its folder in ``methods``.
        package: Folder of the package.

    Raises:
        ValueError: ``methods`` has no such file, or one of the shared sources is gone.
    """
    names = []
    for pattern in (*SHARED, f"methods/{loss}/loss.py"):
        found = sorted(path.relative_to(package).as_posix() for path in package.glob(pattern))
        if not found:
            raise ValueError(
                f"{package / pattern}: no such source; correct fewstep/provenance.py or the method"
            )
        names += found
    total = hashlib.sha256()
    for name in names:
        path = package / name
        total.update(f"{name}\0{_file_digest(path, path.stat().st_mtime_ns)}\0".encode())
    return total.hexdigest()[:16]


@lru_cache(maxsize=256)
def _file_digest(path: Path, _changed: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return hashlib.sha256(_canonical(tree).encode()).hexdigest()


def _canonical(node: object) -> str:
    """The syntax tree as text. Empty fields are left out: Python versions differ in which they have."""
    if isinstance(node, list):
        return "[" + ",".join(map(_canonical, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list) and _has_docstring(node):
            value = value[1:]
        if value is not None and value != []:
            fields.append(f"{name}={_canonical(value)}")
    return f"{type(node).__name__}({','.join(fields)})"


def _has_docstring(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None
