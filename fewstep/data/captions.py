"""Captions of data sets and sets of prompts, read from the files of a fetched asset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from ..config import ConfigError, Strict
from ..config.base import Count, parse
from ..config.settings import Dataset
from ..config.text import PromptSet
from .archives import CaptionedTars
from .asset_files import read_record
from .caption_text import caption_of, json_list, json_object
from .image_files import check_number
from .question_table import read_question_table


class Wanted(Strict):
    """What an image of a prompt must show, or must not, in GenEval's words."""

    name: str = Field(alias="class")
    count: Count
    color: str | None = None
    position: tuple[Literal["left of", "right of", "above", "below"], int] | None = Field(
        default=None, strict=False, description="relation to the entry of this number"
    )


class Prompt(Strict):
    """A line of a set of prompts: GenEval's keys, and those of other authors."""

    model_config = ConfigDict(extra="allow")

    prompt: str
    id: str | int | None = None
    tag: str = ""
    include: list[Wanted] = []
    exclude: list[Wanted] = []
    held_out: bool = Field(default=False, description="training did not have it")


def read_captions(dataset: Dataset, record: Path) -> list[str]:
    """The captions of ``dataset`` in the asset of ``record``, in the order of their labels.

    Several images, and several labels, may have equal captions.

    Raises:
        ConfigError: a data set without captions; missing or damaged files; a caption that is missing, empty
            or not UTF-8; another number of captions than ``dataset.classes``.
    """
    opened = read_record(record)
    if dataset.format == "captioned-tars":
        return CaptionedTars(dataset, opened).captions()
    if not dataset.captioned:
        raise ConfigError(f"{record}: dataset.format: {dataset.format} has no captions")
    path, _ = opened.verified("captions.json")
    found = json_object(path.read_bytes(), str(path)).get("captions")
    if not isinstance(found, list):
        raise ConfigError(f"{path}: captions: must be a list, not {type(found).__name__}")
    numbered = dict(enumerate(found))
    captions = [caption_of(numbered, number, f"{path}: captions") for number in numbered]
    check_number(path, "classes", len(captions), dataset.classes)
    return captions


def read_prompts(prompts: PromptSet, record: Path) -> list[dict[str, Any]]:
    """The prompts in the asset of ``record``: objects with the key `prompt`, and those of `Prompt` if any, or
    of `read_question_table`.

    Several may have equal texts.

    Raises:
        ConfigError: a missing or damaged file; a line that is no such object, or whose prompt is missing,
            empty or not UTF-8; an `id` that is there twice; another number of prompts than
            ``prompts.prompts``; as for `read_question_table`.
    """
    paths = [read_record(record).verified(name)[0] for name in prompts.files]
    found: list[dict[str, Any]] = []
    places: dict[str | int, str] = {}
    for path in paths:
        for where, content in _READERS[prompts.format](path):
            prompt = _prompt(content, where)
            if (name := content.get("id")) is not None:
                if name in places:
                    raise ConfigError(f"{where}: id: {name!r} is that of {places[name]}; ids must differ")
                places[name] = where
            found.append(prompt)
    if len(found) != prompts.prompts:
        where = ", ".join(map(str, paths))
        raise ConfigError(f"{where}: found {len(found)} prompts, the configuration says {prompts.prompts}")
    return found


def _prompt(content: dict[str, Any], where: str) -> dict[str, Any]:
    caption_of(content, "prompt", where)
    parsed = parse(Prompt, content, where)
    for place, part in enumerate(parsed.include):
        if part.position is not None and not 0 <= part.position[1] < place:
            raise ConfigError(f"{where}: include.{place}.position: {part.position[1]} is no earlier entry")
    return content


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        yield where, json_object(line, where)


def _list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, entry in enumerate(json_list(path.read_bytes(), str(path)), 1):
        where = f"{path}: entry {number}"
        if not isinstance(entry, str | dict):
            raise ConfigError(f"{where}: must be text or a JSON object, not {type(entry).__name__}")
        yield where, {"prompt": entry} if isinstance(entry, str) else entry


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, dict[str, Any]]]]] = {
    "jsonl": _lines,
    "json": _list,
    "dpg-csv": read_question_table,
}
"""Format of a set of prompts -> reader of one of its files: places in it, for messages, and what is there."""
