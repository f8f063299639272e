"""What all configuration models share: strictness, names, mistakes with file and key, merging, spec files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..common.secrets_in_urls import redacted
from .origins import SOMEWHERE

NAME = r"^(?:[A-Za-z_][A-Za-z0-9._-]*|[0-9]+[A-Za-z._-][A-Za-z0-9._-]*)$"
"""Names become folders, words of commands and keys of JSON, where a number alone would be read as one."""
NAME_RULE = "is not a name: use letters, digits, '.', '_' and '-', a letter or digit first, not digits alone"
Name = Annotated[str, Field(pattern=NAME)]
Count = Annotated[int, Field(gt=0, le=1_000_000_000_000)]
"""Of images, steps or bytes. What is larger is a slip of the pen, and would make a plan without end."""
Size = Annotated[int, Field(gt=0, le=65_536)]
"""Of a network or an image along one side."""
Batch = Annotated[int, Field(gt=0, le=1_000_000)]
"""Images at once."""
Seed = Annotated[int, Field(ge=0, lt=1 << 63)]
MOST_STEPS = 100_000
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
"""Of a sampler."""
Shape = Annotated[list[Size], Field(min_length=3, max_length=3)]
"""(C, H, W)."""


def distinct(values: list[Any]) -> list[Any]:
    """Refuse a list in which something stands twice."""
    twice = [shown(value) for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"{', '.join(dict.fromkeys(twice))} stands twice; remove one")
    return values


Distinct = AfterValidator(distinct)
Seeds = Annotated[list[Seed], Field(min_length=1), Distinct]


class ConfigError(ValueError):
    """Mistakes in the configuration: a line each, with file, key, what was found and the remedy."""


class Strict(BaseModel):
    """A frozen model in which unknown keys and silently converted types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True, allow_inf_nan=False)

    def __hash__(self) -> int:
        """Of the content, lists and mappings included, so that results can be cached by it."""
        return hash(self.model_dump_json())


Model = TypeVar("Model", bound=BaseModel)


class Mistakes:
    """Collects mistakes, to be told together; one that is found twice is told once.

    A file that cannot be read makes others of what refers to it: then such files alone are told.

    Args:
        locate: what to do with every line when it is told: `origins.Origins.locate`.
    """

    def __init__(self, locate: Callable[[str], str] = str) -> None:
        self._lines: dict[str, None] = {}
        self._unread: dict[str, None] = {}
        self.locate = locate

    def add(self, *lines: str, unread: bool = False) -> None:
        """Collect lines; ``unread``: of a file that cannot be read."""
        self._lines |= dict.fromkeys(lines)
        if unread:
            self._unread |= dict.fromkeys(lines)

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
            raise ConfigError("\n".join(dict.fromkeys(map(self.locate, self._unread or self._lines))))


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
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        found.setdefault(".".join([*key, *_keys(item, raw)]), []).append(item)
    for where, items in found.items():
        told = [_message(item, model) for item in items]
        if len(items) > 1:
            wanted = [_wanted(item) for item in items]
            given = items[0].get("input")
            if all(wanted):
                near = nearest(given, ", ".join(wanted).split(", "), "")
                told = [f"must be {' or '.join(dict.fromkeys(wanted))}, not {shown(given)}{near}"]
        entry = str(items[0].get("input"))
        if items[0]["type"] == "list_type" and re.fullmatch(rf"\d+|{NAME[1:-1]}", entry):
            told = [f"{told[0]}; write [{entry}]"]
        yield redacted(f"{file}: {where + ': ' if where else ''}{', or '.join(dict.fromkeys(told))}")


_WANTED = {
    "bool_type": "true or false",
    "date_type": "a date",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "model_type": "a mapping",
    "multiple_of": "a multiple of {multiple_of}",
    "none_required": "null",
    "string_pattern_mismatch": "text of the form {pattern}",
    "string_too_short": "text that is not empty",
    "string_type": "text",
    "too_long": "of {max_length} entries, not {actual_length}",
    "too_short": "of {min_length} or more entries, not {actual_length}",
}
"""What pydantic's errors say must be."""


def _wanted(item: Any) -> str:
    """What a value must be, as the end of a sentence; empty if that does not say it."""
    if item["type"] == "literal_error":
        return ", ".join(re.findall(r"'([^']*)'", item["ctx"]["expected"])) or str(item["ctx"]["expected"])
    return _WANTED.get(item["type"], "").format(**item.get("ctx", {}))


def _message(item: Any, model: type[BaseModel]) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    key = kind == "string_type" and item["loc"][-1:] == ("[key]",)
    if key or (kind == "string_pattern_mismatch" and context["pattern"] == NAME):
        return f"{given!r} {NAME_RULE}"
    if kind in ("extra_forbidden", "invalid_key"):
        return f"unknown key, perhaps misspelt{nearest(str(item['loc'][-1]), _field_names(model), '')}"
    if kind == "missing":
        return "is missing"
    if kind in ("float_type", "int_type") and _is_number(given):
        return (
            f"is the text {given!r}, not a number: write it without quotes and with a "
            f"decimal point (YAML reads 1e-4 as text, 1.0e-4 as a number)"
        )
    if kind == "literal_error":
        known = _wanted(item).split(", ")
        return f"{shown(given)} is not one of {', '.join(known)}{nearest(str(given), known, '')}"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        field = context["discriminator"].strip("'")
        return f"unknown {field} {context['tag']!r}{nearest(context['tag'], known)}"
    if kind == "union_tag_not_found":
        return f"{context['discriminator']} is missing, which says what this is"
    if kind == "value_error":
        return str(context["error"])
    wanted = _wanted(item)
    if kind in ("too_long", "too_short"):
        return f"must be {wanted}"
    if wanted:
        quote = "; put it in quotes" if kind == "string_type" and not _collection(given) else ""
        return f"must be {wanted}, not {shown(given)}{quote if given is not None else ''}"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, not {shown(given)}"


def _collection(value: Any) -> bool:
    return isinstance(value, Mapping | list)


def plain(key: Any) -> str:
    """A key as a message shows it, on one line."""
    text = str(key)
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, and short."""
    if _collection(value):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest(name: Any, names: Iterable[str], otherwise: str | None = None) -> str:
    """The known name that is nearest, as the end of a sentence; ``otherwise``, or all, if none is near."""
    names = list(map(str, names))
    near = get_close_matches(str(name), names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(sorted(names))}" if otherwise is None else otherwise


def _field_names(model: type[BaseModel]) -> set[str]:
    """Of a model and of all models in it."""
    schema = model.model_json_schema()
    return {
        name for part in [schema, *schema.get("$defs", {}).values()] for name in part.get("properties", {})
    }


def _keys(item: Any, raw: Any) -> Iterable[str]:
    """The keys as they stand in the file, and of list entries the id: pydantic also names union branches."""
    absent = item["type"] in ("missing", "extra_forbidden", "invalid_key")
    location = [part for part in item["loc"] if part != "[key]"]
    for number, part in enumerate(location):
        entry = isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        inside = entry or (isinstance(raw, Mapping) and part in raw)
        if inside:
            raw = raw[part]
        if inside or (absent and number == len(location) - 1):
            yield plain(raw["id"] if entry and isinstance(raw, Mapping) and "id" in raw else part)


def _is_number(value: Any) -> bool:
    """Whether a value is text that reads as a number."""
    try:
        return isinstance(value, str) and float(value) is not None
    except ValueError:
        return False


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML that notes keys that stand twice, and numbers that YAML reads as text."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.mistakes: list[str] = []
        self.line = 0
        self.deep_construct = True  # what contains itself is an error, not an endless structure

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        self.line = node.start_mark.line + 1
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key_node, deep=deep)
            if not isinstance(name, Hashable):
                break  # an error below
            if name in seen:
                self.mistakes.append(f"line {key_node.start_mark.line + 1}: key {name!r} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    def construct_yaml_str(self, node: yaml.ScalarNode) -> str | float:
        text = str(self.construct_scalar(node))
        if not node.style and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", text):
            self.mistakes.append(
                f"line {self.line}: YAML reads {text} as text: write the number with a "
                f"decimal point and a sign (1.0e-4), text in quotes"
            )
            return float(text)
        return text


_StrictLoader.add_constructor("tag:yaml.org,2002:str", _StrictLoader.construct_yaml_str)


def _load_yaml(content: bytes) -> tuple[Any, list[str]]:
    """What a YAML text holds, and what is wrong with it; None where it cannot be read."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        byte = content[error.start]
        return None, [f"line {line}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"]
    loader = None
    try:
        loader = _StrictLoader(text)
        return loader.get_single_data(), loader.mistakes
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        tab = re.match(r" *\t", [*text.split("\n"), ""][line - 1])
        return None, [f"line {line}: {'a tab; indent with spaces' if tab else error.problem}"]
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        found = error.character if isinstance(error.character, str) else chr(error.character)
        return None, [f"line {line}: the character {found!r} may not stand in YAML; remove it"]
    except RecursionError:
        return None, ["mappings and lists are nested too deeply, or contain themselves"]
    except (ValueError, yaml.YAMLError) as error:  # such as a month of 40 days
        line = loader.line if loader else 0
        return None, [f"line {line}: {' '.join(str(error).split())}"]


def read_yaml(path: Path, shown: str = "", mistakes: Mistakes | None = None) -> dict[str, Any]:
    """Read one YAML mapping; an empty file is an empty mapping.

    Args:
        shown: what messages call the file.
        mistakes: where they are collected, instead of being raised; what can be read is returned.
    """
    own = Mistakes() if mistakes is None else mistakes
    raw: Any = None
    try:
        raw, found = _load_yaml(path.read_bytes())
    except FileNotFoundError:
        found = ["no such file"]
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        found = [" ".join(str(error).split())]
    if not isinstance(raw, dict | NoneType):
        found.append(f"must be a mapping, not {type(raw).__name__}")
        raw = None
    own.add(*(f"{shown or path}: {line}" for line in found), unread=raw is None)
    if mistakes is None:
        own.refuse()
    return raw or {}


def is_there(path: Path) -> bool:
    """Whether there is a file or folder; none for a path that is too long, say."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def merge(base: Any, over: Any) -> Any:
    """Lay ``over`` on ``base``: mappings key by key, anything else as a whole."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    return over


def complete(
    given: Mapping[str, Any], repository: Path, command_line: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Lay what Snakemake was given (a preset, the command line, an outer workflow's configuration) on
    config/config.yaml, and on the presets that it is ``based_on``; both are found in the repository.

    Args:
        command_line: what ``--config`` gave, of `command_line_values`.
    """
    given = merge(given, command_line or {})
    result: dict[str, Any] = {}
    # `load` reads them again, and tells what is wrong.
    for _, content in layers(given, repository, Mistakes()):
        result = merge(result, content)
    return merge(result, given)  # type: ignore[no-any-return]


def layers(
    given: Mapping[str, Any], repository: Path, mistakes: Mistakes
) -> list[tuple[str, dict[str, Any]]]:
    """Files of the repository that a configuration is laid on, the lowest first, with their content."""
    found: dict[str, dict[str, Any]] = {}
    preset = given.get("based_on")
    while isinstance(preset, str) and preset:
        if preset in found:
            mistakes.add(f"{preset}: based_on: goes in a circle: {' <- '.join([*found, preset])}")
            break
        if not is_there(repository / preset):
            there = f"there is no file {shown(preset)} in {repository.resolve()}"
            mistakes.add(f"{SOMEWHERE}: based_on: {there}", unread=True)
            break
        found[preset] = read_yaml(repository / preset, preset, mistakes)
        preset = found[preset].get("based_on")
    root = "config/config.yaml"
    return [(root, read_yaml(repository / root, root, mistakes)), *reversed(found.items())]


def command_line_values(words: Iterable[str]) -> dict[str, Any]:
    """``--config`` values (KEY=VALUE) as YAML reads them in a file.

    Snakemake itself reads whole numbers and decimals, but leaves those in lists and mappings text.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        value, mistakes = _load_yaml(text.encode())
        values = merge(values, {key: text if value is None and mistakes else value})
    return values


def passed_on(
    given: Mapping[str, Any], parsed: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of the command line that an outer workflow hands on in its configuration.

    Args:
        given: the outer workflow's configuration.
        parsed: the command line as Snakemake reads it, by which it is recognised in ``given``.
        values: the same as `command_line_values` reads it.
    """
    return {key: values[key] for key, value in parsed.items() if _contains(given.get(key), value)}


def _contains(whole: Any, part: Any) -> bool:
    if not isinstance(part, Mapping):
        return bool(whole == part)
    return isinstance(whole, Mapping) and all(_contains(whole.get(key), part[key]) for key in part)


def are_texts(value: Any) -> bool:
    """Whether a value is a mapping from text to text."""
    return isinstance(value, Mapping) and all(
        isinstance(text, str) for pair in value.items() for text in pair
    )


def require_known(name: Any, names: Iterable[str], file: str, key: str) -> None:
    """Raise a ConfigError unless ``name`` is one of ``names``, proposing the nearest."""
    names = list(names)
    if name not in names:
        raise ConfigError(f"{file}: {plain(key)}: unknown name {shown(name)}{nearest(name, names)}")


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
    return read_spec_of(lambda _: model, path, what)


def read_spec_of(
    model_of: Callable[[dict[str, Any]], type[Model]], path: str | Path, what: str = "a spec"
) -> Model:
    """The same for a file of one of several models, which ``model_of`` finds by the content."""
    raw = read_sealed(path, what)
    model = model_of(raw)
    try:
        # As JSON, whose keys are text even where the model's are integers.
        return model.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(error, model, raw, str(path)))) from None
