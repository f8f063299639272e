"""GenEval: whether the objects that are found in an image are those of its prompt (arXiv 2310.11513).

A prompt asks for groups of objects, `include`, and forbids others, `exclude`. Each group has a `class`, a
`count`, and perhaps a `color` or a `position`: [relation, number of an earlier group]. The rules are those
of the published evaluation (github.com/djghosh13/geneval, MIT), written anew; they take detections,
whatever found them. Non-maximum suppression is off, as there.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...config.base import nearest

Prompt = Mapping[str, Any]
"""A line of a set of prompts: `prompt`, and as in GenEval's evaluation_metadata.jsonl `tag`, `include` and
perhaps `exclude`."""

SCORE = 0.3
"""A detection counts above this score (evaluate_images.py, --options threshold)."""
COUNTING_SCORE = 0.9
"""The same for prompts that count (counting_threshold)."""
MOST_OBJECTS = 16
"""Detections of a class that are looked at, the highest scores first (max_objects)."""
POSITION = 0.1
"""Share of both boxes' sizes by which centres must differ along an axis (position_threshold)."""
DIRECTION = 0.5
"""An object is left of another if the unit vector from there has an x below -0.5, and so on."""
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Detection:
    """An object that a detector found."""

    name: str
    """Its class."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels; y points down."""
    score: float
    colour: str | None = None
    """None: not one that is known."""
    mask: Tensor | None = field(default=None, compare=False, repr=False)
    """Its pixels, bool (H, W), where the detector knows them."""


def faults(prompt: Prompt, detections: Iterable[Detection]) -> list[str]:
    """What is wrong in an image with these detections; nothing if it is correct.

    Of a class with more objects than asked for, those with the highest scores are the group: a third apple
    beside "two apples" is no fault of `include`, but of `exclude`.
    """
    found = objects(prompt["tag"], detections)
    wrong = []
    groups: list[Sequence[Detection] | None] = []
    for group in prompt["include"]:
        members = found[group["class"]][: group["count"]]
        fault = _group_fault(group, members, groups)
        groups.append(None if fault else members)
        wrong += [fault] if fault else []
    for group in prompt.get("exclude") or []:
        count = len(found[group["class"]])
        if count >= group["count"]:
            wrong.append(f"{group['class']}: {count} found, at most {group['count'] - 1} are right")
    return wrong


def objects(tag: str, detections: Iterable[Detection]) -> defaultdict[str, list[Detection]]:
    """The detections that count for prompts of a task, by class, the highest score first.

    Of equal scores the first detection stays first.
    """
    least = COUNTING_SCORE if tag == "counting" else SCORE
    found: defaultdict[str, list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda one: -one.score):
        if detection.score > least and len(found[detection.name]) < MOST_OBJECTS:
            found[detection.name].append(detection)
    return found


def _group_fault(
    group: Mapping[str, Any], members: Sequence[Detection], before: Sequence[Sequence[Detection] | None]
) -> str:
    """What is wrong with the objects of a group, or nothing.

    Args:
        before: the objects of the groups before it, None for one that is wrong.
    """
    name, count, colour = group["class"], group["count"], group.get("color")
    if len(members) < count:
        return f"{name}: {len(members)} found, {count} asked for"
    if colour is not None and any(member.colour != colour for member in members):
        return f"{name}: {', '.join(str(member.colour) for member in members)} instead of {colour}"
    if group.get("position") is None:
        return ""
    relation, target = group["position"]
    others = before[target]
    if others is None:
        return f"{name}: nothing there to be {relation}"
    if all(relation in relations(one, other) for one in members for other in others):
        return ""
    return f"{name}: not {relation} the {others[0].name}"


def relations(one: Detection, other: Detection) -> set[str]:
    """Where an object is, seen from another: none, one or two of RELATIONS.

    The offset of the centres, along each axis shortened by the threshold times both sizes, over its whole
    length: two objects on a diagonal are in two relations.
    """
    centres, sizes = zip(*(_centre_and_size(box) for box in (one.box, other.box)), strict=True)
    offset = [here - there for here, there in zip(*centres, strict=True)]
    length = math.hypot(*offset)
    parts = [
        math.copysign(max(abs(distance) - POSITION * sum(both), 0.0), distance)
        for distance, both in zip(offset, zip(*sizes, strict=True), strict=True)
    ]
    if all(abs(part) < 1e-3 for part in parts):  # pixels
        return set()
    x, y = (part / length for part in parts)
    holds = (x < -DIRECTION, x > DIRECTION, y < -DIRECTION, y > DIRECTION)
    return {name for name, is_so in zip(RELATIONS, holds, strict=True) if is_so}


def _centre_and_size(box: tuple[float, float, float, float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    x0, y0, x1, y1 = box
    return ((x0 + x1) / 2, (y0 + y1) / 2), (abs(x1 - x0), abs(y1 - y0))


def check_prompt(
    prompt: Prompt, where: str, classes: Collection[str] = (), colours: Collection[str] = ()
) -> None:
    """Refuse a prompt that these rules cannot judge; names, counts and relations are those of `read_prompts`.

    Args:
        where: file and line, for the message.
        classes: that the detector knows; empty: any.
        colours: that are told apart; empty: any.

    Raises:
        ValueError: no task, no object, a position relative to no earlier group, or an object or colour that
            is never found.
    """
    if prompt.get("tag") not in TAGS:
        raise ValueError(f"{where}: tag: {prompt.get('tag')!r} is not one of {', '.join(TAGS)}")
    if not prompt.get("include"):
        raise ValueError(f"{where}: include: names no object, and the rules need one")
    for number, group in enumerate(prompt["include"]):
        if group.get("position") and group["position"][1] not in range(number):
            raise ValueError(
                f"{where}: include.{number}.position: {group['position'][1]} is not the number of an earlier "
                "group"
            )
    for key in ("include", "exclude"):
        for number, group in enumerate(prompt.get(key) or []):
            for what, known in (("class", classes), ("color", colours)):
                found = group.get(what)
                if known and found is not None and found not in known:
                    raise ValueError(
                        f"{where}: {key}.{number}.{what}: {found!r} is unknown to the detector"
                        f"{nearest(found, known)}"
                    )


def score_by_task(correct: Sequence[float], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Accuracy over the images of each task that occurs.

    Args:
        correct: 1 or 0 for each image.
        prompts: of each image.
    """
    found = defaultdict(list)
    for value, prompt in zip(correct, prompts, strict=True):
        found[prompt["tag"]].append(value)
    return {tag: sum(found[tag]) / len(found[tag]) for tag in TAGS if tag in found}


def overall(correct: Sequence[float], prompts: Sequence[Prompt]) -> float:
    """GenEval's score: the mean of the accuracies of the tasks that occur."""
    by_task = score_by_task(correct, prompts)
    return sum(by_task.values()) / len(by_task)
