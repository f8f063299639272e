"""DPG-Bench's table of questions (arXiv 2403.05135): several lines a prompt, each with a question about it.

Of its columns (item_id, text, keywords, proposition_id, dependency, category_broad, category_detailed, tuple,
question_natural_language) those below are read. As in the published script, the category of a question is
what its `tuple` begins with: "attribute - color (bag, red)" is of `attribute`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.cli import first_few
from ..config import ConfigError
from .caption_text import caption_of

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
CATEGORIES = ("global", "entity", "attribute", "relation", "other")


def read_question_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each prompt of a table, for messages, and the prompt: `prompt`, `id` and `questions`.

    A question has `id`, `question`, `category`, and `parents`, ids of questions before whose "yes" it has no
    meaning.

    Raises:
        ConfigError: naming file, line and column: a column or value is missing; a number is none; a category
            is unknown; a prompt's lines differ in its text; the id of a question stands twice; a parent is
            none of the prompt's questions, or questions depend on each other in a circle.
    """
    current: dict[str, Any] = {}
    lines: dict[int, str] = {}  # of the questions of the current prompt, as messages name them
    for where, row in _rows(path):
        name = _value(row, "item_id", where)
        text = caption_of(row, "text", where)
        if name != current.get("id"):
            if current:
                yield _checked(current, lines)
            current, lines = {"prompt": text, "id": name, "questions": []}, {}
        if text != current["prompt"]:
            raise ConfigError(
                f"{where}: text: differs from the line before, which has the same item_id {name!r}"
            )
        question = _question(row, where)
        if question["id"] in lines:
            raise ConfigError(f"{where}: proposition_id: {question['id']} stands twice for {name!r}")
        lines[question["id"]] = where
        current["questions"].append(question)
    if current:
        yield _checked(current, lines)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Place and values of each line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise ConfigError(f"{path}: line 1: has no column {first_few(absent)}")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise ConfigError(f"{where}: has not the {len(reader.fieldnames or ())} values of line 1")
                yield where, row
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: not CSV: {error}") from None


def _value(row: Mapping[Any, Any], column: str, where: str) -> str:
    return caption_of(row, column, where).strip()


def _question(row: Mapping[Any, Any], where: str) -> dict[str, Any]:
    words = _value(row, "tuple", where)
    category = words.partition("(")[0].partition("-")[0].strip()
    if category not in CATEGORIES:
        raise ConfigError(f"{where}: tuple: begins with {category!r}, not one of {', '.join(CATEGORIES)}")
    numbers = [_number(part, "dependency", where) for part in _value(row, "dependency", where).split(",")]
    return {
        "id": _number(_value(row, "proposition_id", where), "proposition_id", where),
        "question": _value(row, "question_natural_language", where),
        "category": category,
        "parents": [number for number in numbers if number != 0],  # 0: on none
    }


def _number(text: str, column: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{where}: {column}: must be a whole number, not {text.strip()!r}") from None


def _checked(prompt: dict[str, Any], lines: Mapping[int, str]) -> tuple[str, dict[str, Any]]:
    """The place of its first line and the prompt, if every question's parents are questions of it that do not
    depend on the question."""
    parents = {question["id"]: question["parents"] for question in prompt["questions"]}
    for number, asked in parents.items():
        for other in asked:
            if other not in parents:
                raise ConfigError(
                    f"{lines[number]}: dependency: {other} is no proposition_id of {prompt['id']!r}"
                )
    free: set[int] = set()
    while rest := parents.keys() - free:
        ready = {number for number in rest if free.issuperset(parents[number])}
        if not ready:
            first = min(rest)
            raise ConfigError(
                f"{lines[first]}: dependency: {first} of {prompt['id']!r} depends on itself, or "
                "through others"
            )
        free |= ready
    return next(iter(lines.values())), prompt
