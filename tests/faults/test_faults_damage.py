"""Damaged files of every kind, given to the stages that read them.

Each is refused in one line that names the file, or has no effect on the result.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from campaign import ACCEPTED, COUNT, count_damage
from read_files import KINDS
from tiny_pipeline import TinyPipeline


def flip(content: bytearray, draws: random.Random) -> None:
    content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)


def flip_early(content: bytearray, draws: random.Random) -> None:
    content[draws.randrange(min(len(content), 2048))] ^= 1 << draws.randrange(8)


def flip_late(content: bytearray, draws: random.Random) -> None:
    content[-1 - draws.randrange(min(len(content), 1024))] ^= 1 << draws.randrange(8)


def truncate(content: bytearray, draws: random.Random) -> None:
    del content[draws.randrange(len(content)) :]


def zero_half(content: bytearray, draws: random.Random) -> None:
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)


def zero_part(content: bytearray, draws: random.Random) -> None:
    start = draws.randrange(len(content))
    part = content[start : start + 64]
    content[start : start + 64] = bytes(len(part))


def text_digit(content: bytearray, draws: random.Random) -> None:
    """Another digit in place of one: JSON stays JSON."""
    digits = [place for place, byte in enumerate(content) if 48 <= byte <= 57]
    place = draws.choice(digits)
    content[place] = draws.choice([byte for byte in range(48, 58) if byte != content[place]])


FAULTS = (flip, flip_early, flip_late, truncate, zero_half, zero_part, text_digit)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_or_without_effect(pipeline: TinyPipeline, tmp_path, capsys, kind):
    case = KINDS[kind](pipeline, tmp_path)
    case.before()
    case.call()
    expected = case.result()
    whole = case.path.read_bytes() if case.path.exists() else b""
    if not whole:
        case.before()
        whole = case.path.read_bytes()
    outcomes: Counter[str] = Counter()
    draws = random.Random(kind)
    for number in range(COUNT):
        content = bytearray(whole)
        fault = FAULTS[number % len(FAULTS)]
        fault(content, draws)
        for path in case.call.outputs:
            path.unlink(missing_ok=True)
        case.before()
        case.path.write_bytes(content)
        try:
            case.call()
        except (ValueError, OSError) as error:
            text = str(error)
            assert case.path.name in text and "\n" not in text, f"{kind}: {fault.__name__} {number}: {text!r}"
            outcomes["refused by name"] += 1
        else:
            told = case.path.name in capsys.readouterr().out
            equal = "told, and made again" if told else "without effect"
            outcomes[equal if case.result() == expected else ACCEPTED] += 1
    with capsys.disabled():
        print(f"\n{kind}: {COUNT} faults: {dict(outcomes)}", end="")
    count_damage(outcomes)
