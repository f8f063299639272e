"""What every configuration model shares: strictness, errors that name file and key, merging, spec files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A mistake in the configuration: one message, a line each for file, key and remedy."""


class Strict(BaseModel):
    """A frozen model in which unknown keys and silently converted types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], raw: Any, file: str, *key: str) -> Model:
    """Validate ``raw`` as ``model``.

    Raises:
        ConfigError: naming ``file`` and the full key of every mistake.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, raw, file, key))) from None


def parse_all(model: type[Model], raw: Mapping[str, Any], file: str, *key: str) -> dict[str, Model]:
    """Validate each entry of a mapping as ``model``."""
    return {name: parse(model, entry, file, *key, name) for name, entry in raw.items()}


def _explain(error: ValidationError, raw: Any, file: str, key: tuple[str, ...]) -> Iterable[str]:
    for item in error.errors():
        where = ".".join([*key, *_keys(item["loc"], raw)])
        message = item["msg"]
        given = item.get("input")
        if item["type"] == "extra_forbidden":
            message = "unknown key; is it misspelt?"
        elif item["type"] in ("float_type", "int_type") and _is_number(given):
            message = (
                f"is the text {given!r}, not a number: write it without quotes and with a "
                f"decimal point (YAML reads 1e-4 as text, 1.0e-4 as a number)"
            )
        yield f"{file}: {where}: {message}"


def _keys(location: tuple[int | str, ...], raw: Any) -> Iterable[str]:
    """The keys as they stand in the file: pydantic also names the branch of a union."""
    for number, part in enumerate(location):
        inside = (isinstance(raw, Mapping) and part in raw) or isinstance(raw, list)
        if inside or number == len(location) - 1:
            yield str(part)
        if inside:
            raw = raw[part]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, str)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error instead of a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key_node, deep=deep)
            if name in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {name!r} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (yaml.YAMLError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping, not {type(raw).__name__}")
    return raw


def merge(base: Any, over: Any) -> Any:
    """Lay ``over`` on ``base``: mappings key by key, anything else as a whole."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {
            key: merge(base[key], over[key])
            if key in base and key in over
            else over[key]
            if key in over
            else base[key]
            for key in [*base, *(key for key in over if key not in base)]
        }
    return over


def complete(given: Mapping[str, Any], repository: Path) -> dict[str, Any]:
    """Lay what Snakemake was given (a preset, the command line, an outer workflow's configuration) on
    config/config.yaml, and on the preset that it is ``based_on``; both are found in the repository.
    """
    rest = {key: value for key, value in given.items() if key != "based_on"}
    layers = ["config/config.yaml", *([given["based_on"]] if "based_on" in given else [])]
    result: dict[str, Any] = {}
    for layer in [*(read_yaml(repository / name) for name in layers), rest]:
        result = merge(result, layer)
    return result


def require_known(name: str, names: Iterable[str], file: str, key: str) -> None:
    """Raise a ConfigError unless ``name`` is one of ``names``, proposing the nearest."""
    names = list(names)
    if name in names:
        return
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(names))}"
    raise ConfigError(f"{file}: {key}: unknown name {name!r}{hint}")


def dump(spec: Strict) -> str:
    """Canonical text of a spec: sorted keys, so that equal specs are equal bytes."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, indent=1) + "\n"


def digest(spec: Strict) -> str:
    """First 16 hex digits of the SHA-256 of the canonical text."""
    return hashlib.sha256(dump(spec).encode()).hexdigest()[:16]


def read_spec(model: type[Model], path: str | Path) -> Model:
    """Read and validate a spec file.

    Raises:
        ConfigError: naming the file and the offending key.
    """
    try:
        raw: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse(model, _integer_keys(raw), str(path))


def _integer_keys(raw: Any) -> Any:
    """JSON turns integer mapping keys into text; turn them back."""
    if isinstance(raw, dict):
        return {
            int(key) if isinstance(key, str) and key.isdecimal() else key: _integer_keys(value)
            for key, value in raw.items()
        }
    return [_integer_keys(value) for value in raw] if isinstance(raw, list) else raw
