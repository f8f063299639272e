"""The repository's files and what they import, read but not run."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from configs import ROOT

PACKAGE = ROOT / "fewstep"


@cache
def tracked() -> list[Path]:
    """Every file that is or would be committed, relative to the top."""
    if not (ROOT / ".git").exists():
        return _unpacked()
    # A checkout may belong to another user than the one who tests it.
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(name) for name in sorted(set(names)) if (ROOT / name).is_file()]


def _unpacked() -> list[Path]:
    """The same for an unpacked archive: every file but those in folders that .gitignore names."""
    lines = text(Path(".gitignore")).split()
    top = {line.strip("/") for line in lines if line.startswith("/")} | {".git"}
    anywhere = [line.strip("/") for line in lines if not line.startswith("/")]
    paths = [path.relative_to(ROOT) for path in sorted(ROOT.rglob("*")) if path.is_file()]
    return [
        path
        for path in paths
        if path.parts[0] not in top
        and not any(fnmatch(part, name) for part in path.parts for name in anywhere)
    ]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def module_of(path: Path) -> str:
    """``fewstep/data/hub.py`` -> ``fewstep.data.hub``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """Modules that ``module`` imports anywhere, also inside functions; ours by their full names."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _without_type_checking(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else base for name in names}
    return frozenset(found)


def _without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, but for what only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _without_type_checking(node)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] == "fewstep"}


def theirs(module: str) -> set[str]:
    """Top-level names of the third parties (and of the standard library)."""
    return {name.split(".")[0] for name in imports(module)} - {"fewstep"}


def area(module: str) -> str:
    """``fewstep.data.hub`` -> ``data``; a module at the top of the package is its own area."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def reached(module: str) -> set[str]:
    """All modules of ours that ``module`` may load, lazily too; with the packages they lie in."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen or name not in modules():
            continue
        seen.add(name)
        todo += ours(name)
        todo.append(name.rpartition(".")[0])
    return seen
