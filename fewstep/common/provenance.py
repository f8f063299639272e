"""Digests of the sources that a result depends on.

A training stores its digest in the model's card and a score in its metrics; a table compares them with
today's and marks the cell `stale` when they differ. The sources are found from the imports: what the
starting modules import, also inside functions, and what those import in turn. config/ and plan/ are left
out, because their values are in the spec; common/ only moves files. Comments, docstrings and formatting do
not count, nor does the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .files import sha256

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = ("config", "plan", "common")
CHOSEN = ("methods", "backbones")
"""Rooms of which a run uses one module, chosen by name: their __init__ is not followed into the others."""
CAPTIONED = ("sd3", "clip")
"""Kinds of networks that are given captions."""
LIVE_TEXT = "data.text_encoding"
"""Encodes captions in a training of one of these; it is not followed for others."""
SAMPLING = ("evaluation.generation", "data.tokenizers")
PIPELINE = "pipeline"
"""What stands for the kind of network of images that a pipeline of diffusers has made."""
FEATURES, PROMPTS, LIKELIHOOD = "feature-metrics", "prompt-scores", "likelihood"
"""Kinds of protocols; one that does not say it is of the first."""
SCORING = {
    FEATURES: "evaluation.scoring",
    PROMPTS: "evaluation.prompt_scoring",
    LIKELIHOOD: "evaluation.likelihood",
}
"""Kind of a protocol -> the module that scores by it."""


def sources(package: Path = PACKAGE) -> list[str]:
    """SHA-256 of every module of the package, as it is on the disk now."""
    return [sha256(path) for path in sorted(package.rglob("*.py"))]


@cache
def training_digest(loss: str, backbone: str, package: Path = PACKAGE) -> str:
    """Digest of the trainer, a method and a backbone: 16 hex digits.

    Args:
        loss: name of the loss, which is its folder in methods/.
        backbone: kind of the network.
        package: folder of the package.

    Raises:
        ValueError: no such method or backbone.
    """
    method = sorted((package / "methods" / loss).glob("*.py"))
    if not method:
        raise ValueError(f"unknown method {loss!r}: {package / 'methods' / loss} has no modules")
    modules = [f"methods.{loss}.{path.stem}" for path in method]
    unused = [] if backbone in CAPTIONED else [LIVE_TEXT]
    return _digest(package, ["training.trainer", *modules, backbone_module(package, backbone)], unused)


@cache
def sampling_digest(backbone: str, package: Path = PACKAGE) -> str:
    """Digest of sampling and decoding with a backbone; errors as for `score_digest`."""
    return _digest(package, _sampling(package, backbone))


@cache
def score_digest(backbone: str, protocol: str, package: Path = PACKAGE) -> str:
    """Digest of sampling, decoding and scoring with a backbone: 16 hex digits.

    Args:
        backbone: kind of the network.
        protocol: kind of the protocol, which says by what the images are scored.
        package: folder of the package.

    Raises:
        ValueError: no such backbone.
    """
    return _digest(package, [*_sampling(package, backbone), SCORING[protocol]])


@cache
def bounds_digest(package: Path = PACKAGE) -> str:
    """Digest of the code that scores real scenes: 16 hex digits."""
    return _digest(package, ["evaluation.scene_bounds"])


def is_stale(metrics: Mapping[str, Any]) -> bool:
    """Whether the code behind a metrics file, of its training or its score, has changed since.

    Released weights have no training code here (``code`` is None).
    """
    model = metrics.get("model", {})
    kind, loss = metrics.get("backbone_kind"), model.get("loss")
    training, score = metrics.get("code"), metrics.get("score_code")
    # A training that goes on with another one's state is of the code of all that came before.
    codes = {training, *model.get("continues", {}).get("codes", [])}
    if training is not None and (None in (kind, loss) or codes != {training_digest(loss, kind)}):
        return True
    protocol = metrics.get("protocol", {}).get("kind", FEATURES)
    return score is not None and score != score_digest(kind, protocol)


def _sampling(package: Path, backbone: str) -> list[str]:
    if backbone == PIPELINE:
        return ["evaluation.pipeline_generation"]
    return [*SAMPLING, backbone_module(package, backbone)]


def backbone_module(package: Path, kind: str) -> str:
    """The module that builds a kind of network, by the table in backbones/, which is not imported here."""
    tree = ast.parse((package / "backbones" / "__init__.py").read_text(encoding="utf-8"))
    (networks,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NETWORKS"
    )
    if kind not in networks:
        raise ValueError(f"unknown backbone {kind!r}; known: {', '.join(networks)}")
    return f"backbones.{networks[kind][0]}"


def _digest(package: Path, start: Iterable[str], unused: Collection[str] = ()) -> str:
    total = hashlib.sha256()
    for name, path in sorted(closure(package, start, unused).items()):
        total.update(f"{name}\0{_source(path).digest}\0".encode())
    return total.hexdigest()[:16]


def closure(
    package: Path,
    start: Iterable[str],
    unused: Collection[str] = (),
    left_out: Collection[str] = LEFT_OUT,
) -> dict[str, Path]:
    """Modules reached from ``start`` by imports within the package, by name without the package's own.

    Those ``unused``, and the rooms ``left_out``, are left out, with what they alone import.

    Raises:
        ValueError: a module of ``start`` does not exist.
    """
    found: dict[str, Path] = {}
    todo = list(start)
    if absent := [name for name in todo if _path(package, name) is None]:
        raise ValueError(f"{package.name}.{absent[0]}: no such module")
    while todo:
        name = todo.pop()
        path = _path(package, name)
        if path is None or name in found or name in unused or name.split(".")[0] in left_out:
            continue
        found[name] = path
        others = _source(path).imports(package.name, name)
        todo += [other for other in others if not (name in CHOSEN and other.startswith(f"{name}."))]
    return found


def _path(package: Path, name: str) -> Path | None:
    path = package.joinpath(*name.split("."))
    for candidate in (path / "__init__.py", path.with_suffix(".py")):
        if name and candidate.exists():
            return candidate
    return None


class _Source:
    """The syntax tree of a file: its digest, and what it imports."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        self.digest = hashlib.sha256(_canonical(tree).encode()).hexdigest()
        self._is_package = path.name == "__init__.py"
        self._imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]

    def imports(self, package: str, name: str) -> list[str]:
        """Names, without the package's own, of all modules that an import may mean.

        ``from .x import y`` may mean the module x or its submodule y: both are named.
        """
        found = []
        here = [package, *name.split(".")]
        for node in self._imports:
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
                continue
            base = node.module.split(".") if node.module else []
            if node.level:
                base = here[: len(here) - node.level + self._is_package] + base
            found += [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
        prefix = f"{package}."
        return [other.removeprefix(prefix) for other in found if other.startswith(prefix)]


@cache
def _source(path: Path) -> _Source:
    return _Source(path)


def _canonical(node: object) -> str:
    """The syntax tree as text, without docstrings, the same in all versions of Python.

    Empty fields are left out, because versions differ in which they have (type_params since 3.12).
    """
    if isinstance(node, list):
        return "[" + ",".join(_canonical(item) for item in node if not _is_docstring(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, _canonical(value)) for name, value in ast.iter_fields(node) if value is not None]
    return f"{type(node).__name__}({','.join(f'{name}={text}' for name, text in fields if text != '[]')})"


def _is_docstring(node: object) -> bool:
    """A statement that is nothing but a string."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
