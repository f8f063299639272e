"""What all configuration models share: strictness, names, mistakes with file and key, merging, spec files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..common.secrets_in_urls import redacted

NAME = r"^[A-Za-z0-9._-]*[A-Za-z._-][A-Za-z0-9._-]*$"
"""Names become folders, words of commands and keys of JSON, where a number alone would be read as one."""
NAME_RULE = "is not a name: use letters, digits, '.', '_' and '-', not digits alone"
Name = Annotated[str, Field(pattern=NAME)]


class ConfigError(ValueError):
    """Mistakes in the configuration: a line each, with file, key, what was found and the remedy."""


class Strict(BaseModel):
    """A frozen model in which unknown keys and silently converted types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    def __hash__(self) -> int:
        """Of the content, lists and mappings included, so that results can be cached by it."""
        return hash(self.model_dump_json())


Model = TypeVar("Model", bound=BaseModel)


class Mistakes:
    """Collects mistakes, to be told together; one that is found twice is told once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    def add(self, *lines: str) -> None:
        self._lines |= dict.fromkeys(lines)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Collect a ConfigError of the block, which ends there, and go on."""
        try:
            yield
        except ConfigError as error:
            self.add(*str(error).splitlines())

    def __bool__(self) -> bool:
        return bool(self._lines)

    def refuse(self) -> None:
        """Raise a ConfigError if there are any."""
        if self._lines:
            raise ConfigError("\n".join(self._lines))


def parse(model: type[Model], raw: Any, file: str, *key: str) -> Model:
    """Validate ``raw`` as ``model``.

    Raises:
        ConfigError: naming ``file`` and the full key of every mistake.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, model, raw, file, *key))) from None


def parse_entries(
    model: type[Model], raw: Mapping[str, Any], file: str, mistakes: Mistakes, depth: int = 1
) -> Model:
    """Validate a file of named entries, ``depth`` keys deep; those with mistakes are left out of the result.

    Raises:
        ConfigError: something is wrong that is not in an entry.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        mistakes.add(*_explain(error, model, raw, file))
        for item in error.errors():
            raw = _without(raw, item["loc"][:depth])
    try:
        return model.model_validate(raw)
    except ValidationError:
        mistakes.refuse()
        raise


def _without(raw: Any, keys: tuple[int | str, ...]) -> Any:
    if not keys or not isinstance(raw, Mapping) or keys[0] not in raw:
        return raw
    rest = {key: value for key, value in raw.items() if key != keys[0]}
    return rest if len(keys) == 1 else {**rest, keys[0]: _without(raw[keys[0]], keys[1:])}


def _explain(error: ValidationError, model: type[BaseModel], raw: Any, file: str, *key: str) -> Iterable[str]:
    """A line for each key; the branches of a union are alternatives."""
    told: dict[str, list[str]] = {}
    for item in error.errors():
        where = ".".join([*key, *_keys(item["loc"], raw)])
        told.setdefault(where, []).append(_message(item, model))
    for where, messages in told.items():
        yield redacted(f"{file}: {where + ': ' if where else ''}{', or '.join(dict.fromkeys(messages))}")


def _message(item: Any, model: type[BaseModel]) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key, perhaps misspelt{nearest(str(item['loc'][-1]), _field_names(model), '')}"
    if kind == "missing":
        return "is missing"
    if kind == "string_pattern_mismatch" and context["pattern"] == NAME:
        return f"{given!r} {NAME_RULE}"
    if kind in ("float_type", "int_type") and _is_number(given):
        return (
            f"is the text {given!r}, not a number: write it without quotes and with a "
            f"decimal point (YAML reads 1e-4 as text, 1.0e-4 as a number)"
        )
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        return f"{given!r} is not one of {', '.join(known)}{nearest(str(given), known, '')}"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        field = context["discriminator"].strip("'")
        return f"unknown {field} {context['tag']!r}{nearest(context['tag'], known)}"
    if kind == "value_error":
        return str(context["error"])
    found = "" if isinstance(given, Mapping | list) else f", not {given!r}"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}{found}"


def nearest(name: str, names: Iterable[str], otherwise: str | None = None) -> str:
    """The known name that is nearest, as the end of a sentence; ``otherwise``, or all, if none is near."""
    names = list(names)
    near = get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(sorted(names))}" if otherwise is None else otherwise


def _field_names(model: type[BaseModel]) -> set[str]:
    """Of a model and of all models in it."""
    schema = model.model_json_schema()
    return {
        name for part in [schema, *schema.get("$defs", {}).values()] for name in part.get("properties", {})
    }


def _keys(location: tuple[int | str, ...], raw: Any) -> Iterable[str]:
    """The keys as they stand in the file, and of list entries the id: pydantic also names union branches."""
    for number, part in enumerate(location):
        inside = (isinstance(raw, Mapping) and part in raw) or isinstance(raw, list)
        if inside:
            raw = raw[part]
        if (inside or number == len(location) - 1) and part != "[key]":
            yield str(
                raw["id"] if isinstance(part, int) and isinstance(raw, Mapping) and "id" in raw else part
            )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML that notes keys that stand twice, and numbers that YAML reads as text."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.mistakes: list[str] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key_node, deep=deep)
            if name in seen:
                self.mistakes.append(f"line {key_node.start_mark.line + 1}: key {name!r} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str | float:
        if not node.style and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", node.value):
            self.mistakes.append(
                f"line {node.start_mark.line + 1}: YAML reads {node.value} as text: write the number with a "
                f"decimal point and a sign (1.0e-4), text in quotes"
            )
            return float(node.value)
        return str(self.construct_scalar(node))


_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_yaml_str)


def read_yaml(path: Path, shown: str = "", mistakes: Mistakes | None = None) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping.

    Args:
        shown: what messages call the file.
        mistakes: where they are collected, instead of being raised; what can be read is returned.
    """
    own = Mistakes() if mistakes is None else mistakes
    raw: Any = None
    try:
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
        raw = loader.get_single_data()
        found = loader.mistakes
    except FileNotFoundError:
        found = ["no such file"]
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        found = [f"{line}{error.problem}"]
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        found = [" ".join(str(error).split())]
    if not isinstance(raw, dict | NoneType):
        found.append(f"must be a mapping, not {type(raw).__name__}")
        raw = None
    own.add(*(f"{shown or path}: {line}" for line in found))
    if mistakes is None:
        own.refuse()
    return raw or {}


def merge(base: Any, over: Any) -> Any:
    """Lay ``over`` on ``base``: mappings key by key, anything else as a whole."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    return over


def complete(
    given: Mapping[str, Any], repository: Path, command_line: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Lay what Snakemake was given (a preset, the command line, an outer workflow's configuration) on
    config/config.yaml, and on the preset that it is ``based_on``; both are found in the repository.

    Args:
        command_line: what ``--config`` gave, if known: Snakemake leaves numbers in lists and mappings text.
    """
    given = merge(given, _scalars(command_line or {}))
    result: dict[str, Any] = {}
    for file in layers(given):
        # `load` reads them again, and tells what is wrong.
        result = merge(result, read_yaml(repository / file, mistakes=Mistakes()))
    return merge(result, given)  # type: ignore[no-any-return]


def layers(given: Mapping[str, Any]) -> list[str]:
    """Files of the repository that a configuration is laid on."""
    return ["config/config.yaml", *([str(given["based_on"])] if given.get("based_on") else [])]


def _scalars(given: Any) -> Any:
    """``--config`` values as YAML reads them: Snakemake leaves numbers inside of lists and mappings text."""
    if isinstance(given, Mapping):
        return {key: _scalars(value) for key, value in given.items()}
    if isinstance(given, list):
        return [_scalars(value) for value in given]
    if not isinstance(given, str):
        return given
    value = yaml.safe_load(given) if re.fullmatch(r"[\w.+-]*|~", given) else given
    return value if isinstance(value, bool | int | float | NoneType) else given


def require_known(name: str, names: Iterable[str], file: str, key: str) -> None:
    """Raise a ConfigError unless ``name`` is one of ``names``, proposing the nearest."""
    names = list(names)
    if name not in names:
        raise ConfigError(f"{file}: {key}: unknown name {name!r}{nearest(name, names)}")


def dump(spec: Strict) -> str:
    """Canonical text of a spec, with its digest: sorted keys, so that equal specs are equal bytes."""
    return sealed(spec.model_dump(mode="json"))


def digest(spec: Strict) -> str:
    """First 16 hex digits of the SHA-256 of the canonical text."""
    return _digest(spec.model_dump(mode="json"))


def sealed(content: dict[str, Any]) -> str:
    """JSON text of ``content`` with the digest of it, by which `read_sealed` finds damage."""
    return _text({**content, "digest": _digest(content)})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()[:16]


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, indent=1) + "\n"


def read_sealed(path: str | Path, what: str) -> dict[str, Any]:
    """Content of a JSON file; a digest that it has must be that of the rest.

    Args:
        what: what the file should be, with its article.

    Raises:
        ConfigError: the file is missing or damaged, or no mapping.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("no JSON object")
        found = raw.pop("digest", None)
        if found is not None and found != _digest(raw):
            raise ValueError("its digest is another one; remove the key `digest` if you changed the file")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not {what}: {error}") from None
    return raw


def read_spec(model: type[Model], path: str | Path, what: str = "a spec") -> Model:
    """Read and validate a file that `dump` wrote.

    Raises:
        ConfigError: as for `read_sealed`, or naming the file and the offending key.
    """
    raw = read_sealed(path, what)
    try:
        # As JSON, whose keys are text even where the model's are integers.
        return model.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, model, raw, str(path)))) from None
