"""GenEval's rules on made detections, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.evaluation.scorers.geneval import Detection, check_prompt, faults, overall, relations
from fewstep.evaluation.scorers.geneval import score_by_task as by_task


def at(
    name: str, x: float = 0, y: float = 0, score: float = 0.99, colour: str | None = None, size: float = 10
):
    """A detection with its upper left corner at (x, y)."""
    return Detection(name, (x, y, x + size, y + size), score, colour)


def asked(tag: str, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    prompt = {"tag": tag, "include": [{"count": 1, **group} for group in include], "prompt": "..."}
    return prompt if exclude is None else {**prompt, "exclude": exclude}


SINGLE = asked("single_object", {"class": "dog"})
TWO = asked("two_object", {"class": "cat"}, {"class": "pizza"})
THREE = asked("counting", {"class": "apple", "count": 3}, exclude=[{"class": "apple", "count": 4}])
BLUE = asked("colors", {"class": "heart", "color": "blue"})
RIGHT = asked("position", {"class": "train"}, {"class": "bus", "position": ["right of", 0]})
BOTH = asked("color_attr", {"class": "book", "color": "red"}, {"class": "circle", "color": "blue"})
TWO_BLUE = asked("colors", {"class": "heart", "color": "blue", "count": 2})

CASES: list[tuple[str, dict[str, Any], list[Detection], list[str]]] = [
    ("single", SINGLE, [at("dog")], []),
    ("single, beside something else", SINGLE, [at("cat"), at("dog")], []),
    ("single, twice", SINGLE, [at("dog"), at("dog", 20)], []),
    ("single, missing", SINGLE, [at("cat")], ["dog: 0 found, 1 asked for"]),
    ("nothing found", SINGLE, [], ["dog: 0 found, 1 asked for"]),
    ("a score at the threshold", SINGLE, [at("dog", score=0.3)], ["dog: 0 found, 1 asked for"]),
    ("a score above it", SINGLE, [at("dog", score=0.301)], []),
    ("two", TWO, [at("pizza"), at("cat", 20)], []),
    ("two, one missing", TWO, [at("cat")], ["pizza: 0 found, 1 asked for"]),
    ("two in one place: no suppression", TWO, [at("cat"), at("pizza")], []),
    ("counting", THREE, [at("apple", x) for x in (0, 20, 40)], []),
    ("too few", THREE, [at("apple"), at("apple", 20)], ["apple: 2 found, 3 asked for"]),
    ("too many", THREE, [at("apple", x) for x in range(4)], ["apple: 4 found, at most 3 are right"]),
    (
        "one is not certain enough",
        THREE,
        [*(at("apple"),) * 2, at("apple", 9, 9, 0.9)],
        ["apple: 2 found, 3 asked for"],
    ),
    ("a fourth that is not certain", THREE, [*(at("apple"),) * 3, at("apple", 9, 9, 0.9)], []),
    ("colour", BLUE, [at("heart", colour="blue")], []),
    ("wrong colour", BLUE, [at("heart", colour="red")], ["heart: red instead of blue"]),
    ("no colour", BLUE, [at("heart")], ["heart: None instead of blue"]),
    (
        "the most certain decides",
        BLUE,
        [at("heart", colour="blue", score=0.5), at("heart", colour="red")],
        ["heart: red instead of blue"],
    ),
    ("of equal scores the first", BLUE, [at("heart", colour="blue"), at("heart", colour="red")], []),
    (
        "of equal scores the first, wrong",
        BLUE,
        [at("heart", colour="red"), at("heart", colour="blue")],
        ["heart: red instead of blue"],
    ),
    (
        "each of a group has the colour",
        TWO_BLUE,
        [at("heart", colour="blue"), at("heart", colour="red")],
        ["heart: blue, red instead of blue"],
    ),
    ("position", RIGHT, [at("train"), at("bus", 20)], []),
    ("position, wrong side", RIGHT, [at("train", 20), at("bus")], ["bus: not right of the train"]),
    ("position, below instead", RIGHT, [at("train"), at("bus", 0, 20)], ["bus: not right of the train"]),
    ("position, in the same place", RIGHT, [at("train"), at("bus")], ["bus: not right of the train"]),
    (
        "position, target missing",
        RIGHT,
        [at("bus", 20)],
        ["train: 0 found, 1 asked for", "bus: nothing there to be right of"],
    ),
    ("position, object missing", RIGHT, [at("train")], ["bus: 0 found, 1 asked for"]),
    ("two with colours", BOTH, [at("book", colour="red"), at("circle", 20, colour="blue")], []),
    (
        "colours swapped",
        BOTH,
        [at("book", colour="blue"), at("circle", 20, colour="red")],
        ["book: blue instead of red", "circle: red instead of blue"],
    ),
    (
        "excluded",
        asked("single_object", {"class": "dog"}, exclude=[{"class": "cat", "count": 1}]),
        [at("dog"), at("cat")],
        ["cat: 1 found, at most 0 are right"],
    ),
    (
        "excluded and not there",
        asked("single_object", {"class": "dog"}, exclude=[{"class": "cat", "count": 1}]),
        [at("dog")],
        [],
    ),
    (
        "sixteen of a class are looked at",
        asked("single_object", {"class": "dog"}, exclude=[{"class": "dog", "count": 17}]),
        [at("dog")] * 20,
        [],
    ),
    (
        "a target of the wrong colour is none",
        asked("position", {"class": "train", "color": "red"}, {"class": "bus", "position": ["right of", 0]}),
        [at("train", colour="blue"), at("bus", 20)],
        ["train: blue instead of red", "bus: nothing there to be right of"],
    ),
    (
        "every one of a group is there",
        asked("position", {"class": "train"}, {"class": "bus", "count": 2, "position": ["above", 0]}),
        [at("train", 0, 40), at("bus"), at("bus", 0, 80)],
        ["bus: not above the train"],
    ),
]


@pytest.mark.parametrize(
    ("prompt", "detections", "wrong"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_rules(prompt, detections, wrong):
    assert faults(prompt, detections) == wrong


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (20, 0, {"right of"}),
        (-20, 0, {"left of"}),
        (0, 20, {"below"}),
        (0, -20, {"above"}),
        (0, 0, set()),
        # Sizes 10 and 10: two pixels of an offset do not count.
        (2, 2, set()),
        (2.0005, 0, set()),
        (3, 0, set()),  # 1 of 3
        (4, 0, set()),  # 2 of 4 is not above one half
        (4.01, 0, {"right of"}),
        (0, -4.01, {"above"}),
        # A diagonal is in two directions, if it is long enough: (d - 2) / (d sqrt 2) > 1/2.
        (20, 20, {"right of", "below"}),
        (-20, 20, {"left of", "below"}),
        (6.8, 6.8, set()),
        (6.9, 6.9, {"right of", "below"}),
        # (20 - 2) / hypot(20, 10) and (10 - 2) / hypot(20, 10)
        (20, 10, {"right of"}),
        (20, 13, {"right of"}),  # 11 of 23.85
        (20, 15, {"right of", "below"}),  # 13 of 25
    ],
)
def test_positions(x, y, found):
    assert relations(at("one", x, y), at("other")) == found


def test_boxes_of_other_sizes():
    """The threshold is a tenth of the sum of both sizes, along each axis."""
    wide = Detection("wide", (0.0, 0.0, 90.0, 10.0), 1.0)
    small = at("small", 60, 0)  # centres 20 apart, threshold 10
    assert relations(small, wide) == set()
    assert relations(at("small", 61, 0), wide) == {"right of"}


def test_the_score_is_the_mean_of_the_tasks():
    """Not of the images: a task with one image counts like one with three."""
    prompts = [SINGLE, SINGLE, SINGLE, BLUE]
    assert by_task([1, 1, 0, 0], prompts) == {"single_object": pytest.approx(2 / 3), "colors": 0.0}
    assert overall([1, 1, 0, 0], prompts) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"tag": "colour", "include": [{"class": "dog", "count": 1}]}, "line 3: tag: 'colour' is not one of"),
        ({"tag": "colors"}, "line 3: include: names no object"),
        (asked("position", {"class": "dog", "position": ["right of", 0]}), r"include\.0\.position: 0 is not"),
        (
            asked("position", {"class": "a"}, {"class": "b", "position": ["above", -1]}),
            "-1 is not the number",
        ),
    ],
)
def test_prompts_that_cannot_be_judged(prompt, message):
    with pytest.raises(ValueError, match=message):
        check_prompt(prompt, "x.jsonl: line 3")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (asked("single_object", {"class": "tree"}), r"include\.0\.class: 'tree' is unknown to the detector"),
        (
            asked("colors", {"class": "dog", "color": "rod"}),
            r"include\.0\.color: 'rod' .*; did you mean 'red'",
        ),
        (
            asked("counting", {"class": "dog"}, exclude=[{"class": "dog", "count": 2}, {"class": "dig"}]),
            r"exclude\.1\.class: 'dig' is unknown to the detector; did you mean 'dog'\?",
        ),
    ],
)
def test_prompts_of_objects_that_a_detector_does_not_know(prompt, message):
    known = {"classes": ("dog", "cat"), "colours": ("red", "blue")}
    with pytest.raises(ValueError, match=rf"x\.jsonl: line 3: {message}"):
        check_prompt(prompt, "x.jsonl: line 3", **known)
    check_prompt(prompt, "any is known")
    check_prompt(asked("colors", {"class": "cat", "color": "blue"}), "here", **known)


@pytest.mark.parametrize("prompt", [SINGLE, TWO, THREE, BLUE, RIGHT, BOTH])
def test_prompts_that_can(prompt):
    check_prompt(prompt, "here")
